// standard_normal on the CPU: threads over the draws, and over stretches of long ones.
#include <algorithm>

#include "checks.h"
#include "cpu/parallel.h"
#include "cpu/simd_dispatch.h"
#include "cpu/standard_normal_simd.h"
#include "math/standard_normal.h"
#include "out_of_memory.h"

namespace mvnrob {

namespace {

constexpr int64_t kStretch = 4096;  // words of a unit of work

const StandardNormalKernels& kernels() { return MVNROB_SIMD_TABLE(standard_normal_kernels); }

}  // namespace

Tensor standard_normal_cpu(const Tensor& keys_in, int64_t first, int64_t count, int64_t dim) {
  check_standard_normal(keys_in, first, count, dim);
  const Tensor keys = contiguous_of(keys_in);
  const int64_t rows = keys.size(0), half = (dim + 1) / 2;
  Tensor out = new_tensor(keys, {rows, count, dim}, ScalarType::Float);
  const int64_t* key = keys.const_data_ptr<int64_t>();
  float* data = out.mutable_data_ptr<float>();
  const auto fill = kernels().fill;
  const int64_t stretches = (half + kStretch - 1) / kStretch;
  const int64_t grain = std::max<int64_t>(1, 2 * kStretch / std::max<int64_t>(1, half));
  parallel_for(0, rows * count * stretches, grain, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t draw = at / stretches, word = at % stretches * kStretch;
      const uint64_t own = math::hashed(uint64_t(key[draw / count]), first + draw % count);
      float* low = data + draw * dim + word;
      const int64_t words = std::min(kStretch, half - word);
      fill(own, word, words, std::min(words, dim - half - word), low, low + half);
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CPU, m) {
  MVNROB_IMPL(m, "standard_normal", &standard_normal_cpu);
}

}  // namespace mvnrob
