// Where a CUDA thread is: the built-in indices (x only; the kernels use no other), and the launch
// that a message of the shim speaks of.
#pragma once
#include <cxxabi.h>

#include <cstdlib>
#include <string>
#include <typeinfo>

struct MvnrobShimIndex {
  unsigned x;
};

// Of the host thread at work; the schedulers set them.
inline thread_local MvnrobShimIndex threadIdx{}, blockIdx{}, blockDim{}, gridDim{};

namespace mvnrob::shim {

struct Grid {
  const std::type_info* body = nullptr;
  unsigned threads = 0, blocks = 0, block = 0;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;

  void enter_block() const {
    blockIdx.x = block;
    blockDim.x = threads;
    gridDim.x = blocks;
  }

  // "mvnrob::kernels::SomeKernel"
  std::string kernel() const {
    int status = 0;
    char* text = abi::__cxa_demangle(body->name(), nullptr, nullptr, &status);
    const std::string kernel = status == 0 ? text : body->name();
    std::free(text);
    return kernel;
  }

  // "block 3 of mvnrob::kernels::SomeKernel"
  std::string name() const { return "block " + std::to_string(block) + " of " + kernel(); }
};

}  // namespace mvnrob::shim
