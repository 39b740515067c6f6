// What kernel bodies may use: CUDA's own names under nvcc, the shim's under a C++ compiler.
#pragma once
#include <cstddef>
#include <cstdint>

#include "math/config.h"

#if defined(__CUDACC__)
#define MVNROB_DEVICE __device__ __forceinline__
#define MVNROB_DEVICE_FN __device__ inline
#define MVNROB_DEVICE_ONCE __device__ __noinline__ inline
#else
#include "shim/cuda.h"
#define MVNROB_DEVICE inline __attribute__((always_inline))
#define MVNROB_DEVICE_FN inline
#define MVNROB_DEVICE_ONCE inline __attribute__((noinline))
#endif

// MVNROB_DEVICE_ONCE: a function that is nowhere inlined. Where products are added to products the
// compiler chooses which of them is rounded, and may choose otherwise wherever it inlines them;
// this has one answer for every kernel.

namespace mvnrob::kernels {

// Blocks that a multiprocessor is to hold, which bounds their registers: one number from sm_90 on,
// one for the compilers of earlier architectures, which need a few registers more.
constexpr int resident_blocks(int sm_90, int earlier) {
#if defined(__CUDA_ARCH__)
  return __CUDA_ARCH__ >= 900 ? sm_90 : earlier;
#else
  return sm_90 > earlier ? sm_90 : earlier;
#endif
}

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;

// The block's dynamic shared memory.
template <class T>
MVNROB_DEVICE T* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char block_shared[];
  return reinterpret_cast<T*>(block_shared);
#else
  return static_cast<T*>(shim::dynamic_shared());
#endif
}

// x, which the compiler takes for something new: what is computed from it is computed where it is
// used, and not kept in registers through a loop before.
MVNROB_DEVICE int64_t anew(int64_t x) {
#if defined(__CUDACC__)
  asm volatile("" : "+l"(x));
#endif
  return x;
}

MVNROB_DEVICE int anew(int x) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// x, from global memory that this kernel does not write, where `there`; else what it was. A branch
// would have the compiler keep both.
MVNROB_DEVICE void load_where(bool there, float& x, const float* from) {
#if defined(__CUDACC__)
  asm volatile(
      "{.reg .pred %%there; setp.ne.s32 %%there, %2, 0;\n"
      " @%%there ld.global.f32 %0, [%1];}\n"
      : "+f"(x)
      : "l"(from), "r"(int(there)));
#else
  if (there) x = *from;
#endif
}
MVNROB_DEVICE void load_where(bool there, uint16_t& x, const uint16_t* from) {
#if defined(__CUDACC__)
  asm volatile(
      "{.reg .pred %%there; setp.ne.s32 %%there, %2, 0;\n"
      " @%%there ld.global.u16 %0, [%1];}\n"
      : "+h"(x)
      : "l"(from), "r"(int(there)));
#else
  if (there) x = *from;
#endif
}

// Whether the loop of a captured graph, by its handle, goes on after the present pass.
MVNROB_DEVICE void set_loop(uint64_t loop, bool goes_on) {
#if defined(__CUDACC__)
  cudaGraphSetConditional(loop, goes_on);
#else
  shim::set_loop(loop, goes_on);
#endif
}

// Writes a word of the host's memory, which the host may read at any time. It orders nothing else.
MVNROB_DEVICE void tell_host(uint64_t* word, uint64_t value) {
#if defined(__CUDACC__)
  *static_cast<volatile uint64_t*>(word) = value;  // one store, of system scope
#else
  shim::tell_host(word, value);
#endif
}

// 16 bytes from global to shared memory, in the background; both ends aligned to 16. Zeros, and no
// look at global memory, where there is nothing to copy.
MVNROB_DEVICE void copy_async16(void* shared, const void* global, bool there = true) {
#if defined(__CUDACC__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(there ? 16 : 0)
               : "memory");
#else
  shim::copy_async(shared, global, 16, there);
#endif
}

// The same of 8 bytes, both ends aligned to 8.
MVNROB_DEVICE void copy_async8(void* shared, const void* global, bool there = true) {
#if defined(__CUDACC__)
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;\n" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(there ? 8 : 0)
               : "memory");
#else
  shim::copy_async(shared, global, 8, there);
#endif
}

// Closes a group of copies.
MVNROB_DEVICE void copy_async_commit() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#else
  shim::copy_async_commit();
#endif
}

// Waits until at most `groups` of this thread's groups are under way.
template <int groups>
MVNROB_DEVICE void copy_async_wait() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;\n" ::"n"(groups) : "memory");
#else
  shim::copy_async_wait(groups);
#endif
}

}  // namespace mvnrob::kernels
