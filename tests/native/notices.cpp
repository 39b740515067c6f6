// What csrc/cuda remembers and sees of the host's memory, with CUDA's run-time library played by
// the functions here. With an argument it has no memory to give.
#include <chrono>
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
using mvnrob::kernels::kAllDone;
using mvnrob::kernels::kBegun;
using mvnrob::kernels::kTold;
using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// Many threads at once: nothing is seen that no kernel told.
void check_threads() {
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([] {
      for (int i = 0; i < 20000; ++i) {
        Notice notice;
        notice.open();
        require((notice.word() != nullptr) == has_memory, "a word where there is memory");
        require(!notice.is_done(), "nothing is seen");
      }
    });
  for (std::thread& thread : threads) thread.join();
  require(allocations == 1, "memory is asked for once");
  require(capture_mode == cudaStreamCaptureModeGlobal, "the mode is put back");
}

// Two that share a word are told apart, an older one's that comes late included.
void check_tickets() {
  const Notice never;
  require(!never.is_done(), "nothing is seen before open()");
  Notice first, second;
  first.open();
  do second.open();
  while (second.word() != first.word());
  require(first.ticket() < second.ticket(), "tickets increase");
  *first.word() = first.ticket() + kAllDone;
  require(first.is_done() && !second.is_done(), "the first is told");
  *second.word() = second.ticket() + kAllDone;
  require(!first.is_done() && second.is_done(), "the second is told");
  *first.word() = first.ticket() + kAllDone;
  require(first.is_done() && !second.is_done(), "the first is told late");
}

// How long await() took.
Clock::duration waited(Notice& notice, uint64_t rounds) {
  const Clock::time_point start = Clock::now();
  notice.await(rounds);
  return Clock::now() - start;
}

// Only for a device that is at work on these launches, and a millisecond in all. Times are compared
// from below: a busy machine may take longer at any place.
void check_waiting() {
  const auto patient = [](uint64_t told, uint64_t rounds) {
    Notice notice;
    notice.open();
    if (told < kTold) *notice.word() = notice.ticket() + told;
    return waited(notice, rounds) + waited(notice, rounds) >= microseconds(1000);
  };
  const auto ever = [&](uint64_t told, uint64_t rounds) {
    for (int k = 0; k < 20; ++k)
      if (!patient(told, rounds)) return false;
    return true;
  };
  require(!ever(kTold, 1), "no wait where nothing was told");
  require(!ever(3, 3) && !ever(4, 3) && !ever(kAllDone, 3), "no wait for what was told");
  require(ever(kBegun, 1) && ever(2, 3), "a wait for what comes next");
  Notice notice;
  notice.open();
  *notice.word() = notice.ticket() + kBegun;
  waited(notice, 1);
  for (int k = 0;; ++k) {
    if (waited(notice, 1) < microseconds(500)) break;
    require(k < 20, "patience ends");
  }
  notice.open();
  const Notice other = notice;
  uint64_t* const word = notice.word();
  std::thread device([&] {
    *static_cast<volatile uint64_t*>(word) = other.ticket() + kBegun;
    *static_cast<volatile uint64_t*>(word) = other.ticket() + kAllDone;
  });
  while (!notice.is_done()) notice.await(5);
  device.join();
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
  if (has_memory) check_waiting();
  check_remembered();
}
