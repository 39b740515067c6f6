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
#include "math/jac_cov.h"

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
// Groups of rows that stay in a second-level cache while all groups of columns pass by.
constexpr int64_t kNear = (512 << 10) / (kGroup * kChunkBytes);

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

// One group of rows over a chunk of columns: `out` takes its differences as
// [vector][row of the group][lane]; rows and columns beyond the end are zeros.
template <class in_t>
class Packer {
 public:
  using T = typename ComputeType<in_t>::type;

  Packer(const JacRows& rows, int64_t row, int64_t first, int64_t count, T* out)
      : count_(count), out_(out) {
    const in_t* data = static_cast<const in_t*>(rows.data) + first;
    target_ = data + rows.target * rows.row_stride;
    for (int i = 0; i < kGroup; ++i)
      source_[i] = row + i < rows.classes ? data + (row + i) * rows.row_stride : target_;
  }

  // Vectors [begin, end) of each row.
  void pack(int64_t begin, int64_t end) const {
    constexpr int width = Simd<T>::kWidth;
    const int64_t whole = count_ / width, whole_end = end < whole ? end : whole;
    T* out = out_ + begin * kGroup * width;
    for (int64_t s = begin; s < whole_end; ++s) {
      const auto t = load(target_ + s * width);
#pragma GCC unroll 8
      for (int i = 0; i < kGroup; ++i) store(out + i * width, t - load(source_[i] + s * width));
      out += kGroup * width;
    }
    if (end > whole) {
      const int64_t part = count_ - whole * width;
      const auto t = load_part(target_ + whole * width, part);
      for (int i = 0; i < kGroup; ++i)
        store(out + i * width, t - load_part(source_[i] + whole * width, part));
    }
  }

 private:
  const in_t* target_;
  const in_t* source_[kGroup];
  int64_t count_;
  T* out_;
};

inline int64_t groups_of(int64_t begin, int64_t end) { return (end - begin + kGroup - 1) / kGroup; }

// A tile's scratch: its packed rows, the packed columns, the sums (on the diagonal the columns are
// the rows, and the sums those of a triangle); sized for the widest type.
int64_t scratch_bytes(int64_t tile_rows, bool only_diagonal) {
  const int64_t groups = groups_of(0, tile_rows);
  const int64_t blocks = only_diagonal ? groups * (groups + 1) / 2 : groups * groups;
  const int64_t slots = kSlots<float> > kSlots<double> ? kSlots<float> : kSlots<double>;
  const int64_t panels = only_diagonal ? groups : 2 * groups;
  return panels * kGroup * kChunkBytes + blocks * slots * int64_t(sizeof(double));
}

// The entries of S that a register block's sums come from and go to.
template <class T, class out_t>
class BlockOfS {
 public:
  BlockOfS(out_t* S, int64_t classes, int64_t row, int64_t col)
      : upper_(S + row * classes + col),
        lower_(S + col * classes + row),
        classes_(classes),
        height_(classes - row < kGroup ? int(classes - row) : kGroup),
        length_(classes - col < kGroup ? int(classes - col) : kGroup),
        diagonal_(row == col) {}

  // Rows of S are apart by many pages, so that nothing fetches these lines in time by itself.
  void prefetch_upper() const { prefetch(upper_, height_, length_); }
  void prefetch_lower() const { prefetch(lower_, length_, height_); }

  void read(double* sums) const {
    for (int k = 0; k < kSlots<T>; ++k) sums[k] = 0.0;
    for_each([&](int i, int j, int slot) { sums[slot] = double(upper_[i * classes_ + j]); });
  }

  void write(const double* sums) const {
    for_each([&](int i, int j, int slot) {
      upper_[i * classes_ + j] = lower_[j * classes_ + i] = out_t(sums[slot]);
    });
  }

 private:
  void prefetch(const out_t* at, int count, int length) const {
    for (int i = 0; i < count; ++i) {
      __builtin_prefetch(at + i * classes_, 1);
      __builtin_prefetch(at + i * classes_ + length - 1, 1);
    }
  }

  template <class Visit>
  void for_each(const Visit& visit) const {
    if (!diagonal_ && height_ == kGroup && length_ == kGroup) {
#pragma GCC unroll 8
      for (int i = 0; i < kGroup; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < kGroup; ++j) visit(i, j, pair_slot(false, i, j));
    } else {
      for (int i = 0; i < height_; ++i)
        for (int j = diagonal_ ? i : 0; j < length_; ++j) visit(i, j, pair_slot(diagonal_, i, j));
    }
  }

  out_t *upper_, *lower_;
  int64_t classes_;
  int height_, length_;
  bool diagonal_;
};

template <class in_t, class out_t>
void tile(const JacRows& rows, const JacTile& tile, out_t* S, void* scratch) {
  using T = typename ComputeType<in_t>::type;
  constexpr int width = Simd<T>::kWidth;
  constexpr int64_t chunk = Simd<T>::kChunk;
  const bool diagonal = tile.row_begin == tile.col_begin;
  const int64_t row_groups = groups_of(tile.row_begin, tile.row_end);
  const int64_t col_groups = groups_of(tile.col_begin, tile.col_end);
  T* const left = static_cast<T*>(scratch);
  T* const right = diagonal ? left : left + row_groups * kGroup * chunk;
  double* const all_sums = reinterpret_cast<double*>(right + col_groups * kGroup * chunk);

  for (int64_t first = 0; first < rows.columns; first += chunk) {
    const bool begins = first == 0, ends = first + chunk >= rows.columns;
    const int64_t count = ends ? rows.columns - first : chunk;
    const int64_t steps = (count + width - 1) / width;
    const int64_t panel = steps * kGroup * width;
    const auto packer = [&](int64_t group_row, T* out) {
      return Packer<in_t>(rows, group_row, first, count, out);
    };
    double* sums = all_sums;
    for (int64_t near = 0; near < row_groups; near += kNear) {
      const int64_t near_end = near + kNear < row_groups ? near + kNear : row_groups;
      if (!diagonal)
        for (int64_t p = near; p < near_end; ++p)
          packer(tile.row_begin + p * kGroup, left + p * panel).pack(0, steps);
      if (near == 0) packer(tile.col_begin, right).pack(0, steps);
      for (int64_t q = diagonal ? near : 0; q < col_groups; ++q) {
        const int64_t p_end = diagonal && q < near_end ? q + 1 : near_end, blocks = p_end - near;
        const int64_t col = tile.col_begin + q * kGroup;
        const bool packs = near == 0 && q + 1 < col_groups;
        const Packer<in_t> next = packer(col + kGroup, right + (q + 1) * panel);
        for (int64_t p = near; p < p_end; ++p, sums += kSlots<T>) {
          const int64_t row = tile.row_begin + p * kGroup;
          const BlockOfS<T, out_t> block(S, rows.classes, row, col);
          // The next group is packed a little between the products, which go on while memory is
          // waited for.
          if (packs) next.pack((p - near) * steps / blocks, (p - near + 1) * steps / blocks);
          // Going on from S, chunk by chunk, is what makes a Jacobian in pieces give the bits of a
          // whole one.
          if (begins) {
            block.read(sums);
            if (p + 1 < p_end)
              BlockOfS<T, out_t>(S, rows.classes, row + kGroup, col).prefetch_upper();
          }
          if (ends) {
            block.prefetch_upper();
            block.prefetch_lower();
          }
          if (row == col)
            multiply_block<T, true>(right + q * panel, right + q * panel, steps, sums);
          else
            multiply_block<T, false>(left + p * panel, right + q * panel, steps, sums);
          if (ends) block.write(sums);
        }
      }
    }
  }
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

template <class in_t, class out_t>
void corr_row(const in_t* S, int64_t classes, int64_t target, int64_t k, const double* inverse,
              out_t* corr) {
  const double own = inverse[k];
  for (int64_t l = 0; l < target; ++l)
    corr[l] = out_t(math::jac_cov_corr(double(S[l]), own, inverse[l]));
  for (int64_t l = target; l < classes - 1; ++l)
    corr[l] = out_t(math::jac_cov_corr(double(S[l + 1]), own, inverse[l]));
  corr[k] = out_t(1);
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
    &level::corr_row<float, float>,
    &level::corr_row<float, double>,
    &level::corr_row<double, float>,
    &level::corr_row<double, double>,
};

}  // namespace mvnrob
