// A loop in a graph that a stream is being captured into (a conditional node): the device repeats
// the launches of its body for as long as a kernel among them says so, by set_loop of
// kernels/device.h.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>

namespace mvnrob::cuda {

class GraphLoop {
 public:
  // What the stream captures into, if it does.
  static cudaError_t find(cudaStream_t stream, cudaGraph_t* graph, const cudaGraphNode_t** before,
                          size_t* count) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
#if CUDART_VERSION >= 13000
    const cudaError_t error =
        cudaStreamGetCaptureInfo(stream, &status, nullptr, graph, before, nullptr, count);
#else
    const cudaError_t error =
        cudaStreamGetCaptureInfo_v2(stream, &status, nullptr, graph, before, count);
#endif
    if (status != cudaStreamCaptureStatusActive) *graph = nullptr;
    return error;
  }

  // Adds the loop after what the stream has captured so far; what it captures next comes after it.
  cudaError_t open(cudaStream_t stream) {
    cudaGraph_t graph = nullptr;
    const cudaGraphNode_t* before = nullptr;
    size_t count = 0;
    cudaError_t error = find(stream, &graph, &before, &count);
    if (error != cudaSuccess) return error;
    error = cudaGraphConditionalHandleCreate(&handle_, graph, 1, cudaGraphCondAssignDefault);
    if (error != cudaSuccess) return error;
    cudaGraphNodeParams node{};
    node.type = cudaGraphNodeTypeConditional;
    node.conditional.handle = handle_;
    node.conditional.type = cudaGraphCondTypeWhile;
    node.conditional.size = 1;
    cudaGraphNode_t loop = nullptr;
#if CUDART_VERSION >= 13000
    error = cudaGraphAddNode(&loop, graph, before, nullptr, count, &node);
#else
    error = cudaGraphAddNode(&loop, graph, before, count, &node);
#endif
    if (error != cudaSuccess) return error;
    body_ = node.conditional.phGraph_out[0];
#if CUDART_VERSION >= 13000
    return cudaStreamUpdateCaptureDependencies(stream, &loop, nullptr, 1,
                                               cudaStreamSetCaptureDependencies);
#else
    return cudaStreamUpdateCaptureDependencies(stream, &loop, 1, cudaStreamSetCaptureDependencies);
#endif
  }

  cudaGraphConditionalHandle handle() const { return handle_; }

  // One launch of the body, after the one before; `together`: a cooperative one.
  cudaError_t add(const void* kernel, unsigned blocks, unsigned threads, size_t shared_bytes,
                  const void* args, bool together = false) {
    void* parameters[] = {const_cast<void*>(args)};
    cudaKernelNodeParams node{};
    node.func = const_cast<void*>(kernel);
    node.gridDim = dim3(blocks);
    node.blockDim = dim3(threads);
    node.sharedMemBytes = unsigned(shared_bytes);
    node.kernelParams = parameters;
    const cudaGraphNode_t before = last_;
    const cudaError_t error =
        cudaGraphAddKernelNode(&last_, body_, &before, before != nullptr, &node);
    if (error != cudaSuccess || !together) return error;
    cudaLaunchAttributeValue value{};
    value.cooperative = 1;
    return cudaGraphKernelNodeSetAttribute(last_, cudaLaunchAttributeCooperative, &value);
  }

 private:
  cudaGraphConditionalHandle handle_ = 0;
  cudaGraph_t body_ = nullptr;
  cudaGraphNode_t last_ = nullptr;
};

}  // namespace mvnrob::cuda
