// Compiled once per instruction set (setup.py).
#include "cpu/standard_normal_simd.h"

#include <algorithm>

#include "cpu/simd_dispatch.h"
#include "math/pack.h"
#include "math/standard_normal.h"

namespace mvnrob {
namespace MVNROB_ISA {
namespace {

using V = math::Pack<double, math::native_width<double>>;
constexpr int64_t kWidth = math::native_width<double>;
constexpr int64_t kBlock = 256;  // words at a time, in the first-level cache

// Whole packs: what lies beyond the end is computed and dropped.
int64_t padded(int64_t count) { return (count + kWidth - 1) / kWidth * kWidth; }

void numbers(const uint32_t* __restrict bits, int64_t count, float* __restrict out) {
  double p[kBlock];
  const int64_t end = padded(count);
  for (int64_t i = 0; i < end; ++i) p[i] = math::half_uniform(bits[i]);
  for (int64_t i = 0; i < end; i += kWidth) math::ndtri_half<V>(V::load(p + i)).store(p + i);
  for (int64_t i = 0; i < count; ++i) out[i] = math::with_sign(bits[i], p[i]);
}

void fill(uint64_t key, int64_t first, int64_t count, int64_t high_count, float* low, float* high) {
  uint32_t lower[kBlock], upper[kBlock];
  for (int64_t done = 0; done < count; done += kBlock) {
    const int64_t words = std::min(kBlock, count - done), end = padded(words);
    for (int64_t i = 0; i < end; ++i) {
      const uint64_t word = math::hashed(key, first + done + i);
      lower[i] = uint32_t(word);
      upper[i] = uint32_t(word >> 32);
    }
    numbers(lower, words, low + done);
    if (high_count > done) numbers(upper, std::min(kBlock, high_count - done), high + done);
  }
}

}  // namespace
}  // namespace MVNROB_ISA

extern const StandardNormalKernels MVNROB_SIMD_SYMBOL(standard_normal_kernels) = {
    &MVNROB_ISA::fill};

}  // namespace mvnrob
