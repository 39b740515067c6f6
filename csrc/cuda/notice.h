// How the host learns, without waiting, that what it launched has come to its end: a kernel writes
// the ticket of those launches into a word of pinned host memory (tell_host of kernels/device.h).
#pragma once
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace mvnrob::cuda {

class Notice {
 public:
  // A word, and a ticket that no other launches have. Many tickets share a word, which says whose
  // it is by the ticket in it: where a late one of another overwrites it, this one is not seen.
  void open() {
    static std::atomic<uint64_t> tickets{0};
    ticket_ = tickets.fetch_add(1, std::memory_order_relaxed) + 1;  // memory starts with 0
    uint64_t* const all = words();
    word_ = all ? all + ticket_ % kWords : nullptr;
  }

  // Null where the host has no such memory: nothing is ever seen.
  uint64_t* word() const { return word_; }
  uint64_t ticket() const { return ticket_; }

  bool is_seen() const { return word_ && *static_cast<const volatile uint64_t*>(word_) == ticket_; }

 private:
  static constexpr size_t kWords = 4096;

  // The process's; never freed, since kernels may still write there. Whoever is first waits for the
  // allocation, as for the loading of the kernels.
  static uint64_t* words() {
    static uint64_t* const found = allocate();
    return found;
  }

  static uint64_t* allocate() {
    // Relaxed: memory may be had, and breaks nothing, while some thread captures a graph.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    void *memory = nullptr, *on_device = nullptr;
    cudaError_t error = cudaThreadExchangeStreamCaptureMode(&mode);
    if (error == cudaSuccess) {
      error = cudaHostAlloc(&memory, kWords * sizeof(uint64_t),
                            cudaHostAllocPortable | cudaHostAllocMapped);
      if (error == cudaSuccess) error = cudaHostGetDevicePointer(&on_device, memory, 0);
      cudaThreadExchangeStreamCaptureMode(&mode);
    }
    if (error != cudaSuccess) cudaGetLastError();  // the launches must not meet it
    // One address for the host and every device, as in all processes of 64 bits.
    if (error != cudaSuccess || on_device != memory) return nullptr;
    std::memset(memory, 0, kWords * sizeof(uint64_t));
    return static_cast<uint64_t*>(memory);
  }

  uint64_t* word_ = nullptr;
  uint64_t ticket_ = 0;
};

}  // namespace mvnrob::cuda
