// The kernel of standard_normal.
//
// Mapping: a block takes a stretch of one draw, or several whole draws where these are short; a
// thread a word of 64 bits, of which it writes both numbers. Limiter: the inverse normal CDFs in
// FP64, 112 of a word's 200 instructions (sm_90); its 8 bytes of output are less.
#pragma once
#include "kernels/device.h"
#include "math/standard_normal.h"

namespace mvnrob::kernels {

struct StandardNormalArgs {
  const int64_t* keys;  // [rows]
  float* out;           // [rows, count, dim]
  int64_t rows, first, count, dim;
};

struct StandardNormal {
  using Args = StandardNormalArgs;
  static constexpr int kThreads = 128;
  static constexpr int kResidentBlocks = 4;
  static constexpr int kStretch = 4 * kThreads;  // words
  static constexpr uint32_t kMaxBlocks = 65535;

  // How a draw's words and the draws are spread over units, which blocks take in turn. Draws, and
  // so units, are fewer than 2^31 (checks.h): 64-bit divisions are calls, around which registers
  // spill.
  struct Units {
    int64_t half;
    uint32_t draws, stretches, together, count;

    MVNROB_HD_FN explicit Units(const Args& a)
        : half((a.dim + 1) / 2),
          draws(uint32_t(a.rows * a.count)),
          stretches(uint32_t((half + kStretch - 1) / kStretch)),
          together(half > 0 && half < kThreads ? kThreads / uint32_t(half) : 1),
          count((draws + together - 1) / together * stretches) {}
  };

  static unsigned blocks(const Args& a) {
    const uint32_t wanted = Units(a).count;
    return wanted < kMaxBlocks ? wanted : kMaxBlocks;
  }

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const Units units(a);
    const uint32_t width = units.half < kThreads ? uint32_t(units.half) : kThreads;
    const uint32_t own = threadIdx.x / width, lane = threadIdx.x - own * width;
    if (own >= units.together) return;
    for (uint32_t unit = blockIdx.x; unit < units.count; unit += gridDim.x) {
      const uint32_t group = unit / units.stretches, stretch = unit - group * units.stretches;
      const uint32_t draw = group * units.together + own;
      if (draw >= units.draws) return;
      const uint32_t row = draw / uint32_t(a.count), number = draw - row * uint32_t(a.count);
      const uint64_t key = math::hashed(uint64_t(a.keys[row]), a.first + number);
      const int64_t begin = int64_t(stretch) * kStretch, most = begin + kStretch;
      const int64_t end = most < units.half ? most : units.half;
      float* low = a.out + int64_t(draw) * a.dim;
      float* high = low + units.half;
      for (int64_t i = begin + lane; i < end; i += width) {
        const uint64_t word = math::hashed(key, i);
        low[i] = normal(uint32_t(word));
        if (units.half + i < a.dim) high[i] = normal(uint32_t(word >> 32));
      }
    }
  }

  static MVNROB_DEVICE_FN float normal(uint32_t bits) {
    return math::with_sign(bits, math::ndtri_half<double>(math::half_uniform(bits)));
  }
};

}  // namespace mvnrob::kernels
