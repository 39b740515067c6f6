// What csrc/cuda remembers and sees of the host's memory, with CUDA's run-time library played by
// the functions here. With an argument it has no memory to give.
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/notice.h"
#include "cuda/remembered.h"

namespace {

bool has_memory = true;
std::atomic<int> allocations{0}, questions{0};
cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
constexpr int kNoDevice = 9;

void require(bool holds, const char* what) {
  if (holds) return;
  std::printf("not so: %s\n", what);
  std::exit(1);
}

}  // namespace

cudaError_t CUDARTAPI cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, capture_mode);
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  require(capture_mode == cudaStreamCaptureModeRelaxed, "memory is asked for in relaxed mode");
  ++allocations;
  if (!has_memory) return cudaErrorMemoryAllocation;
  *memory = std::aligned_alloc(4096, bytes);
  std::memset(*memory, 0x01, bytes);
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaGetLastError() { return cudaSuccess; }
cudaError_t CUDARTAPI cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
  ++questions;
  *value = 100 + device;
  return device == kNoDevice ? cudaErrorInvalidDevice : cudaSuccess;
}

namespace {

using mvnrob::cuda::Notice;
using mvnrob::cuda::Remembered;

// Many threads at once: nothing is seen that no kernel told.
void check_threads() {
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([] {
      for (int i = 0; i < 20000; ++i) {
        Notice notice;
        notice.open();
        require((notice.word() != nullptr) == has_memory, "a word where there is memory");
        require(!notice.is_seen(), "nothing is seen");
      }
    });
  for (std::thread& thread : threads) thread.join();
  require(allocations == 1, "memory is asked for once");
  require(capture_mode == cudaStreamCaptureModeGlobal, "the mode is put back");
}

// Two that share a word are told apart, an older one's that comes late included.
void check_tickets() {
  const Notice never;
  require(!never.is_seen(), "nothing is seen before open()");
  Notice first, second;
  first.open();
  do second.open();
  while (second.word() != first.word());
  require(first.ticket() < second.ticket(), "tickets increase");
  *first.word() = first.ticket();
  require(first.is_seen() && !second.is_seen(), "the first is told");
  *second.word() = second.ticket();
  require(!first.is_seen() && second.is_seen(), "the second is told");
  *first.word() = first.ticket();
  require(first.is_seen() && !second.is_seen(), "the first is told late");
}

void check_remembered() {
  using mvnrob::cuda::device_attribute;
  int value = 0;
  for (int again = 0; again < 3; ++again)
    for (int device : {0, 3, 63})
      require(device_attribute<cudaDevAttrMultiProcessorCount>(device, value) == cudaSuccess &&
                  value == 100 + device,
              "what CUDA says");
  require(questions == 3, "each device is asked for once");
  for (int device : {64, 64, kNoDevice, kNoDevice})
    device_attribute<cudaDevAttrMultiProcessorCount>(device, value);
  require(questions == 7, "one without a place, and one that failed, every time");
  Remembered remembered;
  int asked = 0;
  for (uint32_t key : {0u, 0u, 5u, 5u, 0u}) {
    uint32_t found = 1;
    remembered.get(0, key, found, [&](uint32_t& answer) {
      ++asked;
      answer = 2 * key;
      return cudaSuccess;
    });
    require(found == 2 * key, "the answer of this key");
  }
  require(asked == 3, "the last key is remembered");
}

}  // namespace

int main(int count, char**) {
  has_memory = count < 2;
  check_threads();
  if (has_memory) check_tickets();
  check_remembered();
}
