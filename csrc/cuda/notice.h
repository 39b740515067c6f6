// How the host learns how far the device has come with what it launched: kernels write the ticket
// of those launches and what they tell (kernels/told.h) into a word of pinned host memory.
#pragma once
#include <cuda_runtime_api.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>

#include "kernels/told.h"

namespace mvnrob::cuda {

class Notice {
 public:
  // A word, and a ticket that no other launches have. Many tickets share a word, which says whose
  // it is by the ticket in it: where a late one of another overwrites it, this one is not seen.
  void open() {
    static std::atomic<uint64_t> tickets{0};
    const uint64_t number = tickets.fetch_add(1, std::memory_order_relaxed) + 1;
    ticket_ = number * kernels::kTold;  // memory starts with 0
    uint64_t* const all = words();
    word_ = all ? all + number % kWords : nullptr;
  }

  // Null where the host has no such memory: nothing is ever seen.
  uint64_t* word() const { return word_; }
  uint64_t ticket() const { return ticket_; }

  bool is_done() const { return told() == kernels::kAllDone; }

  // Waits until so many rounds have begun or all is done, if the device is known to be at work on
  // these launches, and no longer than kPatience in all: about as long as a small call takes the
  // device. What is launched meanwhile and has nothing to do would keep that from the next call.
  void await(uint64_t rounds) {
    if (told() >= rounds || patience_ <= patience_.zero()) return;
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    Clock::duration waited{};
    do {
      std::this_thread::yield();
      waited = Clock::now() - start;
    } while (told() < rounds && waited < patience_);
    patience_ -= waited;
  }

 private:
  // kTold and more where it is not of these launches.
  uint64_t told() const {
    if (!word_) return kernels::kTold;
    return *static_cast<const volatile uint64_t*>(word_) - ticket_;
  }

  static constexpr size_t kWords = 4096;
  static constexpr std::chrono::microseconds kPatience{1000};

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
  std::chrono::steady_clock::duration patience_ = kPatience;
};

}  // namespace mvnrob::cuda
