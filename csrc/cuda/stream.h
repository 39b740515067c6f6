// Torch's current stream, for the torch side.
#pragma once
#include <cuda_runtime_api.h>

#include "torch_utils.h"

namespace mvnrob::cuda {

inline cudaStream_t stream_of(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace mvnrob::cuda
