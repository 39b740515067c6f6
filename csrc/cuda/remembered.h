// What CUDA says of a device, which costs a call every time and is always the same.
#pragma once
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>

namespace mvnrob::cuda {

// A number of each device, for the key that was asked for last. Any threads may ask at once: those
// that find nothing all ask CUDA, and store the same.
class Remembered {
 public:
  // ask(value) finds the number where it is not at hand, and returns CUDA's error; one that failed
  // is asked again.
  template <class Ask>
  cudaError_t get(int device, uint32_t key, uint32_t& value, const Ask& ask) {
    const bool has_place = device >= 0 && device < kDevices;
    const uint64_t mark = (uint64_t(key) + 1) << 32;  // no entry has mark 0
    if (has_place) {
      const uint64_t entry = entries_[device].load(std::memory_order_acquire);
      if ((entry ^ mark) >> 32 == 0) {
        value = uint32_t(entry);
        return cudaSuccess;
      }
    }
    const cudaError_t error = ask(value);
    if (has_place && error == cudaSuccess)
      entries_[device].store(mark | value, std::memory_order_release);
    return error;
  }

 private:
  static constexpr int kDevices = 64;
  std::atomic<uint64_t> entries_[kDevices] = {};
};

// An attribute of a device.
template <cudaDeviceAttr attribute>
cudaError_t device_attribute(int device, int& value) {
  static Remembered remembered;
  uint32_t found = 0;
  const cudaError_t error = remembered.get(device, 0, found, [&](uint32_t& v) {
    int asked = 0;
    const cudaError_t error = cudaDeviceGetAttribute(&asked, attribute, device);
    v = uint32_t(asked);
    return error;
  });
  value = int(found);
  return error;
}

}  // namespace mvnrob::cuda
