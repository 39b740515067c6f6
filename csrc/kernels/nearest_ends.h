// The kernel of nearest_ends.
//
// Mapping: a block takes kDraws draws of one input and goes through its rows kRows at a time: a
// product of two tiles in shared memory, whose results stay in registers and leave only their
// least and greatest. A thread has kOwnDraws draws and kOwnRows rows, the products with the first
// `exact` columns and with the others apart, so that both signs of the latter cost one product.
// Limiter: FP32, 12 words of shared memory for 32 products.
#pragma once
#include <cmath>

#include "kernels/device.h"
#include "kernels/nearest_ends_args.h"

namespace mvnrob::kernels {

struct NearestEnds {
  using Args = NearestEndsArgs;
  static constexpr int kThreads = 128;
  static constexpr int kResidentBlocks = 3;
  static constexpr int kDraws = 64, kRows = 64, kColumns = 16;
  static constexpr int kOwnDraws = 8, kOwnRows = 4;
  static constexpr int kAcross = kRows / kOwnRows, kDown = kDraws / kOwnDraws;
  static_assert(kAcross * kDown == kThreads && kAcross == kColumns);
  // A pitch that spreads the writes over banks and keeps rows of a tile aligned to 16 bytes.
  static constexpr int kDrawPitch = kDraws + 4, kRowPitch = kRows + 4;
  static constexpr size_t kSharedBytes = sizeof(float) * kColumns * (kDrawPitch + kRowPitch);
  static constexpr uint32_t kMaxBlocks = 65535;

  struct alignas(16) Four {
    float v[4];
  };
  using Products = float[kOwnDraws][kOwnRows];

  static MVNROB_HD_FN uint32_t tiles(const Args& a) {
    return (uint32_t(a.count) + kDraws - 1) / kDraws;
  }
  static unsigned blocks(const Args& a) {
    const int64_t units = int64_t(tiles(a)) * a.inputs;
    return unsigned(units < kMaxBlocks ? units : kMaxBlocks);
  }

  static MVNROB_DEVICE_FN void run(const Args& a) {
    const uint32_t each = tiles(a);
    const int64_t units = int64_t(each) * a.inputs;
    for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
      const int32_t input = int32_t(unit / each);
      const int32_t draw = int32_t(unit - int64_t(input) * each) * kDraws;
      find(a, input, draw, 0, a.rising, 1.0f, a.upper, a.above);
      find(a, input, draw, a.rising, a.rows, -1.0f, a.lower, a.below);
    }
  }

 private:
  // The nearest of the rows `first ... end - 1` for both signs, times `way`.
  static MVNROB_DEVICE_FN void find(const Args& a, int32_t input, int32_t draw, int32_t first,
                                    int32_t end, float way, float* out, int64_t* places) {
    const int across = int(threadIdx.x) % kAcross, down = int(threadIdx.x) / kAcross;
    const float* limit = a.limit + int64_t(input) * a.rows;
    float best[2][kOwnDraws];
    int32_t at[2][kOwnDraws];
    MVNROB_UNROLL
    for (int i = 0; i < kOwnDraws; ++i) {
      best[0][i] = best[1][i] = INFINITY;
      at[0][i] = at[1][i] = first < end ? first : 0;
    }
    for (int32_t tile = first; tile < end; tile += kRows) {
      Products known = {}, drawn = {};
      multiply(a, input, draw, tile, end, 0, a.exact, known);
      multiply(a, input, draw, tile, end, a.exact, a.columns, drawn);
      MVNROB_UNROLL
      for (int j = 0; j < kOwnRows; ++j) {
        const int32_t row = tile + across * kOwnRows + j;
        const float here = row < end ? limit[row] * way : INFINITY;
        MVNROB_UNROLL
        for (int i = 0; i < kOwnDraws; ++i) {
          const float middle = here - way * known[i][j], off = way * drawn[i][j];
          keep(middle - off, row, best[0][i], at[0][i]);
          keep(middle + off, row, best[1][i], at[1][i]);
        }
      }
    }
    MVNROB_UNROLL
    for (int sign = 0; sign < 2; ++sign) {
      MVNROB_UNROLL
      for (int i = 0; i < kOwnDraws; ++i) {
        float key = best[sign][i];
        int32_t place = at[sign][i];
        for (int offset = kAcross / 2; offset > 0; offset /= 2) {
          const float other = __shfl_xor_sync(kFullWarp, key, offset);
          const int32_t there = __shfl_xor_sync(kFullWarp, place, offset);
          if (goes_before(other, key) || (other == key && there < place)) {
            key = other;
            place = there;
          }
        }
        const int32_t number = draw + down * kOwnDraws + i;
        if (across != 0 || number >= a.count) continue;
        const int64_t to = (int64_t(a.slot[sign]) * a.count + number) * a.inputs + input;
        out[to] = way * key;
        if (places) places[to] = place;
      }
    }
  }

  // What is no number stays.
  static MVNROB_DEVICE bool goes_before(float key, float best) { return key < best || key != key; }

  static MVNROB_DEVICE void keep(float key, int32_t row, float& best, int32_t& at) {
    if (goes_before(key, best)) {
      best = key;
      at = row;
    }
  }

  // += the products of draws and rows over the columns `from ... to - 1`.
  static MVNROB_DEVICE_FN void multiply(const Args& a, int32_t input, int32_t draw, int32_t tile,
                                        int32_t end, int32_t from, int32_t to, Products& sum) {
    float* draws = dynamic_shared<float>();
    float* rows = draws + kColumns * kDrawPitch;
    const int across = int(threadIdx.x) % kAcross, down = int(threadIdx.x) / kAcross;
    const float* table = a.table + int64_t(input) * a.rows * a.columns;
    for (int32_t start = from; start < to; start += kColumns) {
      const int32_t column = start + across;
      const float sign = column >= a.flipped ? -1.0f : 1.0f;
      __syncthreads();
      MVNROB_UNROLL
      for (int i = down; i < kDraws; i += kDown) {
        const bool there = column < to && draw + i < a.count;
        draws[across * kDrawPitch + i] =
            there ? sign * a.draws[int64_t(draw + i) * a.stride + column] : 0.0f;
      }
      MVNROB_UNROLL
      for (int i = down; i < kRows; i += kDown) {
        const bool there = column < to && tile + i < end;
        rows[across * kRowPitch + i] = there ? table[int64_t(tile + i) * a.columns + column] : 0.0f;
      }
      __syncthreads();
      MVNROB_UNROLL
      for (int k = 0; k < kColumns; ++k) {
        const Four* left = reinterpret_cast<const Four*>(draws + k * kDrawPitch + down * kOwnDraws);
        const Four low = left[0], high = left[1];
        const Four right = *reinterpret_cast<const Four*>(rows + k * kRowPitch + across * kOwnRows);
        MVNROB_UNROLL
        for (int i = 0; i < kOwnDraws; ++i) {
          const float x = i < 4 ? low.v[i % 4] : high.v[i % 4];
          MVNROB_UNROLL
          for (int j = 0; j < kOwnRows; ++j) sum[i][j] += x * right.v[j];
        }
      }
    }
  }
};

}  // namespace mvnrob::kernels
