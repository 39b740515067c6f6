// Tensor cores, by a warp: products of 16 x 16 by 16 x 8 float16 or bfloat16 with float32 sums, and
// of 16 x 8 by 8 x 8 float64.
//
// Lane 4 g + t holds, two of the 16 bits in a word, of A (16 x 16) rows g and g + 8 at columns 2 t
// and 2 t + 8 (words 0 and 1, then 2 and 3), of B (16 x 8, stored by columns) column g at rows 2 t
// and 2 t + 8, of the sums rows g (0 and 1) and g + 8 (2 and 3) at columns 2 t and 2 t + 1. In
// float64 of A (16 x 8) rows g and g + 8 at columns t (0 and 1) and t + 4 (2 and 3), of B (8 x 8)
// column g at rows t and t + 4, of the sums the same as above.
#pragma once
#include "kernels/device.h"

#if !defined(__CUDACC__)
#include "shim/tensor.h"
#endif

namespace mvnrob::kernels {

// Four 8 x 8 matrices from shared memory: lane 8 j + r gives where row r of matrix j lies (16
// bytes).
MVNROB_DEVICE void load_matrices(uint32_t (&out)[4], const void* row) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
#else
  shim::load_matrices(out, row, shim::Caller());
#endif
}

// sum += A B
MVNROB_DEVICE void multiply_matrices(float (&sum)[4], const uint32_t (&a)[4],
                                     const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  shim::multiply_matrices(sum, a, b, shim::Caller());
#endif
}

// The same of bfloat16.
MVNROB_DEVICE void multiply_bfloat16(float (&sum)[4], const uint32_t (&a)[4],
                                     const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  shim::multiply_bfloat16(sum, a, b, shim::Caller());
#endif
}

// The same in float64. Of its products sm_80 has 8 x 4 by 4 x 8 only, of which this is four; from
// sm_90 on the language has the whole, which is one instruction on sm_90 and the same four on those
// that follow. Fused multiply-adds, rounded to nearest.
MVNROB_DEVICE void multiply_matrices(double (&sum)[4], const double (&a)[4], const double (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+d"(sum[0]), "+d"(sum[1]), "+d"(sum[2]), "+d"(sum[3])
      : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
#elif defined(__CUDACC__)
  MVNROB_UNROLL
  for (int k = 0; k < 2; ++k) MVNROB_UNROLL
  for (int m = 0; m < 2; ++m)
    asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};\n"
        : "+d"(sum[2 * m]), "+d"(sum[2 * m + 1])
        : "d"(a[2 * k + m]), "d"(b[k]));
#else
  shim::multiply_matrices(sum, a, b, shim::Caller());
#endif
}

// Whether float64 products go faster by tensor cores than by multiply-adds: twice as fast on A100
// (8.0: 19.5 and 9.7 TFLOP/s by the data sheets) and H100, H200 (9.0: 67 and 34). B200 (10.0) is
// said to have the same rate for both, B300 (10.3) and all cards for graphics and inference (8.6
// .. 8.9, 12.x) have a few FP64 lanes, which do these products too.
MVNROB_HD bool multiplies_doubles(int major, int minor) {
  return (major == 8 || major == 9) && minor == 0;
}

// Two numbers in a word, the first in its lower half.
MVNROB_DEVICE uint32_t to_halves(float first, float second) {
#if defined(__CUDACC__)
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(word) : "f"(second), "f"(first));
  return word;
#else
  return shim::float_to_half(first) | shim::float_to_half(second) << 16;
#endif
}

MVNROB_DEVICE void from_halves(uint32_t word, float& first, float& second) {
#if defined(__CUDACC__)
  asm("{.reg .f16 low, high;\n"
      " mov.b32 {low, high}, %2;\n"
      " cvt.f32.f16 %0, low;\n"
      " cvt.f32.f16 %1, high;}\n"
      : "=f"(first), "=f"(second)
      : "r"(word));
#else
  first = shim::half_to_float(word & 0xffffu);
  second = shim::half_to_float(word >> 16);
#endif
}

}  // namespace mvnrob::kernels
