// Launches kernel bodies on a CUDA stream. For .cu files; no torch.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cuda/graph_loop.h"
#include "cuda/notice.h"
#include "cuda/remembered.h"

namespace mvnrob::cuda {

template <class Body>
__global__ void __launch_bounds__(Body::kThreads, Body::kResidentBlocks)
    kernel(const __grid_constant__ typename Body::Args args) {
  Body::run(args);
}

// The most dynamic shared memory that a body asks for, where it says so.
template <class Body, class = void>
constexpr size_t kMostShared = 0;
template <class Body>
constexpr size_t kMostShared<Body, std::void_t<decltype(Body::kSharedBytes)>> = Body::kSharedBytes;

// Keeps the first error; later launches are left out, as are those after a notice that was watched
// for. The device is the current one.
class Launcher {
 public:
  Launcher(int device, cudaStream_t stream) : device_(device), stream_(stream) {}

  cudaError_t error() const { return error_; }

  template <class Body>
  void launch(unsigned blocks, size_t shared_bytes, const typename Body::Args& args) {
    if (notice_.is_done()) return;
    allow_shared<Body>();
    if (error_ != cudaSuccess) return;
    if (loop_) {
      const auto function = reinterpret_cast<const void*>(&kernel<Body>);
      keep(loop_->add(function, blocks, Body::kThreads, shared_bytes, &args));
      return;
    }
    kernel<Body><<<blocks, Body::kThreads, shared_bytes, stream_>>>(args);
    keep(cudaGetLastError());
  }

  // Whether the stream is being captured into a graph, whose loop the driver knows to run.
  bool repeats() {
    int driver = 0;
    if (!is_captured()) return false;
    keep(cudaDriverGetVersion(&driver));
    return driver >= 12040;
  }

  // Leaves out the launches that come after a kernel is seen to have told that all is done, by
  // `ticket` at `notice` (kernels/told.h). That is null where it could not be seen, and where
  // launches are captured: they would tell at every replay, whoever has the word then.
  void watch(uint64_t*& notice, uint64_t& ticket) {
    if (!is_captured() && error_ == cudaSuccess) notice_.open();
    notice = notice_.word();
    ticket = notice_.ticket();
  }

  // Waits, but not for long, until the round has begun, if the device is at work on the launches
  // that are watched.
  void follow(int32_t round) {
    if (error_ == cudaSuccess) notice_.await(uint64_t(round) + 1);
  }

  // Calls launches(loop) once: the graph repeats them.
  template <class Launches>
  void repeat(const Launches& launches) {
    GraphLoop loop;
    if (error_ == cudaSuccess) keep(loop.open(stream_));
    loop_ = &loop;
    launches(uint64_t(loop.handle()));
    loop_ = nullptr;
  }

  // For a body whose blocks wait for each other; `blocks` is at most what resident_together says.
  template <class Body>
  void launch_together(unsigned blocks, size_t shared_bytes, const typename Body::Args& args) {
    if (notice_.is_done()) return;
    allow_shared<Body>();
    if (error_ != cudaSuccess) return;
    if (loop_) {
      const auto function = reinterpret_cast<const void*>(&kernel<Body>);
      keep(loop_->add(function, blocks, Body::kThreads, shared_bytes, &args, true));
      return;
    }
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = blocks;
    config.blockDim = Body::kThreads;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream_;
    config.attrs = &attribute;
    config.numAttrs = 1;
    keep(cudaLaunchKernelEx(&config, kernel<Body>, args));
  }

  void clear(void* pointer, size_t bytes) {
    if (error_ == cudaSuccess) keep(cudaMemsetAsync(pointer, 0, bytes, stream_));
  }

  // The most shared memory that a body has use for and the device has for a block.
  template <class Body>
  size_t most_shared() {
    if constexpr (kMostShared<Body> > 48 * 1024) {
      int has = 0;
      if (error_ == cudaSuccess)
        keep(device_attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>(device_, has));
      return std::min(kMostShared<Body>, size_t(has));
    }
    return kMostShared<Body>;
  }

  // Blocks that the device holds at once.
  template <class Body>
  int64_t resident_blocks(size_t shared_bytes) {
    static Remembered remembered;
    allow_shared<Body>();
    if (error_ != cudaSuccess) return 1;
    uint32_t blocks = 0;
    keep(remembered.get(device_, uint32_t(shared_bytes), blocks, [&](uint32_t& found) {
      int processors = 0, each = 0;
      cudaError_t error = device_attribute<cudaDevAttrMultiProcessorCount>(device_, processors);
      if (error == cudaSuccess)
        error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel<Body>, Body::kThreads,
                                                              shared_bytes);
      found = uint32_t(processors * each);
      return error;
    }));
    return blocks;
  }

  // Of those, 0 where the device cannot hold all of a launch at once by promise.
  template <class Body>
  int64_t resident_together(size_t shared_bytes) {
    int cooperative = 0;
    if (error_ == cudaSuccess)
      keep(device_attribute<cudaDevAttrCooperativeLaunch>(device_, cooperative));
    return cooperative ? resident_blocks<Body>(shared_bytes) : 0;
  }

 private:
  // Without it a launch with more than 48 KiB fails. Always the most that the kernel ever asks for:
  // the limit is the whole process's, and a lower one, set by another thread between this call and
  // the launch, would make that fail. So once for a device is enough.
  template <class Body>
  void allow_shared() {
    if constexpr (kMostShared<Body> > 48 * 1024) {
      static Remembered remembered;
      uint32_t most = 0;
      const size_t bytes = most_shared<Body>();
      if (error_ == cudaSuccess)
        keep(remembered.get(device_, 0, most, [&](uint32_t& allowed) {
          allowed = uint32_t(bytes);
          return cudaFuncSetAttribute(kernel<Body>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      int(allowed));
        }));
    }
  }

  // Whether the stream is being captured into a graph.
  bool is_captured() {
    cudaGraph_t graph = nullptr;
    const cudaGraphNode_t* before = nullptr;
    size_t count = 0;
    if (error_ == cudaSuccess) keep(GraphLoop::find(stream_, &graph, &before, &count));
    return graph != nullptr;
  }

  void keep(cudaError_t error) {
    if (error_ == cudaSuccess) error_ = error;
  }

  int device_;
  cudaStream_t stream_;
  GraphLoop* loop_ = nullptr;  // where launches go instead of to the stream
  Notice notice_;              // none is watched for before watch()
  cudaError_t error_ = cudaSuccess;
};

}  // namespace mvnrob::cuda
