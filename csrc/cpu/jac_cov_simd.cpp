// Sums of products of Jacobian differences: S_ij = <u_i, u_j>, u_i = J_t - J_i.
//
// The vectors run along the columns of J, so that nothing is transposed: a register block holds one
// vector of partial sums for each pair of `kGroup` rows with `kGroup` others, and a tree of
// shuffles adds the lanes of all of them at the end of a chunk of columns. Differences are taken
// once per tile and chunk, before any product: forming J J^T first would lose eps (|J| / |u|)^2.
//
// Rounding. float32 (and bfloat16, widened exactly) is multiplied and added in float32 over at most
// kChunk columns spread over the lanes, then added in float64; float64 is float64 throughout. The
// sum of a pair does not depend on where the pair lies in a block or tile, so equal rows give equal
// bits and neither the tile size nor the threads can change a result.
//
// Compiled once per instruction set (setup.py): nothing here may call code that the linker could
// merge with another level's copy, hence no std functions and one namespace per level.
#include "cpu/jac_cov_simd.h"

#include <cstdint>
#include <utility>

#include "cpu/simd_dispatch.h"

namespace mvnrob {
namespace MVNROB_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kGroup = 5;  // 25 sums, 5 operands and one more fit 32 registers
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kGroup = 3;  // 9 sums, 3 operands and one more fit 16 registers
#else
constexpr int kVectorBytes = 16;
constexpr int kGroup = 3;
#endif
// Columns handled at a time, in bytes of the computed type. The two groups in use (40 KB at 5 rows)
// mostly stay in a first-level cache; shorter chunks spend more on adding lanes, and measure
// slower.
constexpr int kChunkBytes = 4096;

template <class T>
struct Simd {
  typedef T Vec __attribute__((vector_size(kVectorBytes)));
  static constexpr int kWidth = kVectorBytes / int(sizeof(T));
  static constexpr int kChunk = kChunkBytes / int(sizeof(T));
};

struct bfloat16 {
  uint16_t bits;
};

// What an element of J is computed in.
template <class in_t>
struct ComputeType {
  using type = in_t;
};
template <>
struct ComputeType<bfloat16> {
  using type = float;
};

template <class V, class T>
inline V load_as(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

inline Simd<float>::Vec load(const float* p) { return load_as<Simd<float>::Vec>(p); }
inline Simd<double>::Vec load(const double* p) { return load_as<Simd<double>::Vec>(p); }
inline Simd<float>::Vec load(const bfloat16* p) {
  typedef uint16_t Half __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint32_t Word __attribute__((vector_size(kVectorBytes)));
  const Word word = __builtin_convertvector(load_as<Half>(p), Word) << 16;
  return load_as<Simd<float>::Vec>(&word);
}

inline float value(float x) { return x; }
inline double value(double x) { return x; }
inline float value(bfloat16 x) {
  const uint32_t word = uint32_t(x.bits) << 16;
  float f;
  __builtin_memcpy(&f, &word, sizeof f);
  return f;
}

// The first `count` elements, then zeros.
template <class in_t>
inline auto load_part(const in_t* p, int64_t count) {
  using T = typename ComputeType<in_t>::type;
  T part[Simd<T>::kWidth] = {};
  for (int64_t l = 0; l < count; ++l) part[l] = value(p[l]);
  return load(part);
}

template <class T>
inline void store(T* p, typename Simd<T>::Vec v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Lane of x (or, from the width on, of y) that goes to lane p when segments of `length` lanes are
// halved: all first halves of x's segments, then those of y's.
template <int width, int length>
constexpr int fold_source(int p) {
  constexpr int half = length / 2;
  constexpr int segments = width / length;
  const int q = p / half;
  return (q < segments ? q * length : width + (q - segments) * length) + p % half;
}

template <int width, int length, class V, int... p>
inline V fold(V x, V y, std::integer_sequence<int, p...>) {
  return __builtin_shufflevector(x, y, fold_source<width, length>(p)...) +
         __builtin_shufflevector(x, y, (fold_source<width, length>(p) + length / 2)...);
}

// Adds the lanes of each of n vectors: v[0 .. ceil(n / width) - 1] then hold the n sums in order.
template <int width, int length, int n, class V>
inline void add_lanes(V* v) {
  if constexpr (length > 1) {
    constexpr int half = (n + 1) / 2;
#pragma GCC unroll 16
    for (int k = 0; k < half; ++k)
      v[k] = fold<width, length>(v[2 * k], v[2 * k + 1 < n ? 2 * k + 1 : 2 * k],
                                 std::make_integer_sequence<int, width>());
    add_lanes<width, length / 2, half>(v);
  }
}

// Position of pair (i, j) among the sums of a register block; a block on the diagonal holds i <= j.
constexpr int pair_slot(bool diagonal, int i, int j) {
  return diagonal ? i * kGroup - i * (i - 1) / 2 + (j - i) : i * kGroup + j;
}

template <class T>
constexpr int kSlots = (kGroup * kGroup + Simd<T>::kWidth - 1) / Simd<T>::kWidth * Simd<T>::kWidth;

// sums[slot] += <a_i, b_j> over `steps` vectors of each row, rows of a group interleaved by vector.
template <class T, bool diagonal>
__attribute__((noinline)) void multiply_block(const T* a, const T* b, int64_t steps, double* sums) {
  using V = typename Simd<T>::Vec;
  constexpr int width = Simd<T>::kWidth;
  constexpr int count = diagonal ? kGroup * (kGroup + 1) / 2 : kGroup * kGroup;
  V sum[count];
#pragma GCC unroll 32
  for (int s = 0; s < count; ++s) sum[s] = V{};
  for (int64_t step = 0; step < steps; ++step) {
    V right[kGroup];
#pragma GCC unroll 8
    for (int j = 0; j < kGroup; ++j) right[j] = load(b + j * width);
#pragma GCC unroll 8
    for (int i = 0; i < kGroup; ++i) {
      const V left = diagonal ? right[i] : load(a + i * width);
#pragma GCC unroll 8
      for (int j = diagonal ? i : 0; j < kGroup; ++j)
        sum[pair_slot(diagonal, i, j)] += left * right[j];
    }
    a += kGroup * width;
    b += kGroup * width;
  }
  add_lanes<width, width, count>(sum);
  constexpr int vectors = (count + width - 1) / width;
#pragma GCC unroll 32
  for (int k = 0; k < vectors; ++k) {
    T lanes[width];
    store(lanes, sum[k]);
    for (int l = 0; l < width; ++l) sums[k * width + l] += double(lanes[l]);
  }
}

// Differences of rows [begin, begin + kGroup * groups), columns [first, first + count), as
// out[group][vector][row of the group][lane]; rows and columns beyond the end are zeros.
template <class in_t, class T>
void pack(const JacRows& rows, int64_t begin, int64_t groups, int64_t first, int64_t count,
          T* out) {
  using V = typename Simd<T>::Vec;
  constexpr int width = Simd<T>::kWidth;
  const in_t* data = static_cast<const in_t*>(rows.data) + first;
  const in_t* target = data + rows.target * rows.row_stride;
  const int64_t whole = count / width, part = count - whole * width;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t row = begin + g * kGroup;
    const int present = rows.classes - row < kGroup ? int(rows.classes - row) : kGroup;
    const in_t* source[kGroup];
    for (int i = 0; i < kGroup; ++i)
      source[i] = data + (i < present ? row + i : rows.target) * rows.row_stride;
    for (int64_t s = 0; s < whole; ++s) {
      const V t = load(target + s * width);
#pragma GCC unroll 8
      for (int i = 0; i < kGroup; ++i) store(out + i * width, t - load(source[i] + s * width));
      out += kGroup * width;
    }
    if (part > 0) {
      const V t = load_part(target + whole * width, part);
      for (int i = 0; i < kGroup; ++i)
        store(out + i * width, t - load_part(source[i] + whole * width, part));
      out += kGroup * width;
    }
  }
}

inline int64_t groups_of(int64_t begin, int64_t end) { return (end - begin + kGroup - 1) / kGroup; }

// A tile's scratch: the packed rows, the packed columns, the sums; sized for the widest type.
int64_t scratch_bytes(int64_t tile_rows) {
  const int64_t groups = groups_of(0, tile_rows);
  const int64_t slots = kSlots<float> > kSlots<double> ? kSlots<float> : kSlots<double>;
  return 2 * groups * kGroup * kChunkBytes + groups * groups * slots * int64_t(sizeof(double));
}

// visit(i, j, sum) for each pair of classes of a tile (i <= j on the diagonal), register block by
// register block, as the sums lie.
template <class T, class Visit>
inline void for_each_pair(const JacTile& tile, double* sums, const Visit& visit) {
  const bool diagonal = tile.row_begin == tile.col_begin;
  for (int64_t row = tile.row_begin; row < tile.row_end; row += kGroup)
    for (int64_t col = tile.col_begin; col < tile.col_end; col += kGroup, sums += kSlots<T>) {
      if (diagonal && col < row) continue;
      const int height = tile.row_end - row < kGroup ? int(tile.row_end - row) : kGroup;
      const int length = tile.col_end - col < kGroup ? int(tile.col_end - col) : kGroup;
      const bool triangle = diagonal && col == row;
      for (int i = 0; i < height; ++i)
        for (int j = triangle ? i : 0; j < length; ++j)
          visit(row + i, col + j, sums[pair_slot(triangle, i, j)]);
    }
}

template <class in_t, class out_t>
void tile(const JacRows& rows, const JacTile& tile, out_t* S, void* scratch) {
  using T = typename ComputeType<in_t>::type;
  constexpr int width = Simd<T>::kWidth;
  constexpr int64_t chunk = Simd<T>::kChunk;
  const bool diagonal = tile.row_begin == tile.col_begin;
  const int64_t row_groups = groups_of(tile.row_begin, tile.row_end);
  const int64_t col_groups = groups_of(tile.col_begin, tile.col_end);

  T* left = static_cast<T*>(scratch);
  T* right = diagonal ? left : left + row_groups * kGroup * chunk;
  double* sums = reinterpret_cast<double*>(right + col_groups * kGroup * chunk);
  for (int64_t k = 0; k < row_groups * col_groups * kSlots<T>; ++k) sums[k] = 0.0;
  // Going on from S, chunk by chunk, is what makes a Jacobian in pieces give the bits of a whole
  // one.
  for_each_pair<T>(tile, sums, [&](int64_t i, int64_t j, double& sum) {
    sum = double(S[i * rows.classes + j]);
  });

  for (int64_t first = 0; first < rows.columns; first += chunk) {
    const int64_t count = rows.columns - first < chunk ? rows.columns - first : chunk;
    const int64_t steps = (count + width - 1) / width;
    const int64_t panel = steps * kGroup * width;
    pack<in_t>(rows, tile.row_begin, row_groups, first, count, left);
    if (!diagonal) pack<in_t>(rows, tile.col_begin, col_groups, first, count, right);
    for (int64_t q = 0; q < col_groups; ++q) {
      for (int64_t p = 0; p < (diagonal ? q : row_groups); ++p)
        multiply_block<T, false>(left + p * panel, right + q * panel, steps,
                                 sums + (p * col_groups + q) * kSlots<T>);
      if (diagonal)
        multiply_block<T, true>(right + q * panel, right + q * panel, steps,
                                sums + (q * col_groups + q) * kSlots<T>);
    }
  }

  for_each_pair<T>(tile, sums, [&](int64_t i, int64_t j, double& sum) {
    S[i * rows.classes + j] = S[j * rows.classes + i] = out_t(sum);
  });
}

// Sum of squared differences of at most a chunk of columns.
template <class in_t>
inline double squared_distance(const in_t* a, const in_t* b, int64_t count) {
  using V = typename Simd<typename ComputeType<in_t>::type>::Vec;
  constexpr int width = Simd<typename ComputeType<in_t>::type>::kWidth;
  constexpr int kUnroll = 4;  // independent chains
  V sum[kUnroll] = {};
  int64_t k = 0;
  for (; k + kUnroll * width <= count; k += kUnroll * width)
#pragma GCC unroll 4
    for (int c = 0; c < kUnroll; ++c) {
      const V u = load(a + k + c * width) - load(b + k + c * width);
      sum[c] += u * u;
    }
  for (; k < count; k += width) {
    const V u = count - k < width ? load_part(a + k, count - k) - load_part(b + k, count - k)
                                  : load(a + k) - load(b + k);
    sum[0] += u * u;
  }
  const V all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  double total = 0.0;
  for (int l = 0; l < width; ++l) total += double(all[l]);
  return total;
}

// One pass: some columns of row t stay in the first-level cache while each row streams past.
template <class in_t>
void norms(const JacRows& rows, int64_t begin, int64_t end, double* out) {
  constexpr int64_t chunk = Simd<typename ComputeType<in_t>::type>::kChunk;
  constexpr int64_t block = 4 * chunk;  // longer runs, for the sake of the prefetcher
  const in_t* data = static_cast<const in_t*>(rows.data);
  const in_t* target = data + rows.target * rows.row_stride;
  for (int64_t i = begin; i < end; ++i) out[i] = 0.0;
  for (int64_t first = 0; first < rows.columns; first += block) {
    const int64_t last = rows.columns - first < block ? rows.columns : first + block;
    for (int64_t i = begin; i < end; ++i)
      for (int64_t k = first; k < last; k += chunk)
        out[i] += squared_distance(target + k, data + i * rows.row_stride + k,
                                   last - k < chunk ? last - k : chunk);
  }
}

}  // namespace
}  // namespace MVNROB_ISA

namespace level = MVNROB_ISA;

extern const JacCovKernels MVNROB_SIMD_SYMBOL(jac_cov_kernels) = {
    level::kGroup,
    &level::scratch_bytes,
    {&level::tile<float, float>, &level::tile<double, float>, &level::tile<level::bfloat16, float>},
    {&level::tile<float, double>, &level::tile<double, double>,
     &level::tile<level::bfloat16, double>},
    {&level::norms<float>, &level::norms<double>, &level::norms<level::bfloat16>},
};

}  // namespace mvnrob
