// Macros shared by the mathematics headers. No torch, no CUDA headers.
//
// MVNROB_ISA   inline namespace of everything in csrc/math. A translation unit compiled with
//              -mavx2 -mfma defines it as avx2, one compiled with -mavx512{f,dq,bw,vl} -mfma as
//              avx512, so that a linker never merges inline functions built for different
//              instruction sets.
// MVNROB_HD    small function for host and device, always inlined (a call would spill packs).
// MVNROB_HD_FN larger function for host and device, inlined at the compiler's discretion.
// MVNROB_UNROLL, MVNROB_ROLLED
//              before a loop of device code: written out whole, or not at all.
// MVNROB_NUMBERS(Type, name)
//              after `constexpr Type name`, a struct of float64 numbers: what device code takes for
//              it. A literal of 64 bits takes sm_90 two instructions and a number in constant
//              memory one (ULDC.64). sm_80 has constants as operands and puts literals there
//              itself; from sm_100 on numbers in memory are fetched ahead and kept, and kernels
//              spilled. Only without const do they stay in memory. Each translation unit has its
//              own.
// MVNROB_NUMBERS_OF(name)
//              that in device code, `name` itself in host code.
#pragma once

#ifndef MVNROB_ISA
#define MVNROB_ISA generic
#endif

#if defined(__CUDACC__)
#define MVNROB_HD __host__ __device__ __forceinline__
#define MVNROB_HD_FN __host__ __device__ inline
#define MVNROB_UNROLL _Pragma("unroll")
#define MVNROB_ROLLED _Pragma("unroll 1")
#else
#define MVNROB_HD inline __attribute__((always_inline))
#define MVNROB_HD_FN inline
#define MVNROB_UNROLL
#define MVNROB_ROLLED
#endif

#if defined(__CUDACC__)
#define MVNROB_NUMBERS(Type, name)                  \
  static __constant__ Type name##_in_memory = name; \
  static __constant__ const Type name##_as_literals = name;
#else
#define MVNROB_NUMBERS(Type, name)
#endif
#if !defined(__CUDA_ARCH__)
#define MVNROB_NUMBERS_OF(name) name
#elif __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1000
#define MVNROB_NUMBERS_OF(name) name##_in_memory
#else
#define MVNROB_NUMBERS_OF(name) name##_as_literals
#endif
