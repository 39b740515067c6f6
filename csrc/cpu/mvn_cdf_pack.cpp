#include "cpu/mvn_cdf_pack.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "plan/ordering.h"

namespace mvnrob {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

// Turns rows of a Factor into the sampler's blocks.
class Packer {
 public:
  Packer(const Factor& factor, int block_rows) : f_(factor), block_rows_(block_rows) {}

  // The pivots, each followed by its group.
  template <class List>
  void sampled(List& list) {
    std::vector<int64_t> rows;
    std::vector<uint8_t> closes;
    std::vector<std::vector<int64_t>> groups(f_.pivots_);
    for (int64_t i = f_.live_end_; i < f_.m_; ++i) groups[f_.group_[i]].push_back(i);
    for (int64_t j = 0; j < f_.pivots_; ++j) {
      rows.push_back(j);
      rows.insert(rows.end(), groups[j].begin(), groups[j].end());
      closes.resize(rows.size(), 0);
      closes.back() = 1;
    }
    clear(list);
    int64_t known = 0;
    for (size_t first = 0; first < rows.size(); first += block_rows_) {
      const int64_t count = std::min<int64_t>(block_rows_, int64_t(rows.size() - first));
      int64_t after = known;
      for (int64_t r = 0; r < count; ++r) after += closes[first + r];
      open(list, first, count, known, after);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t i = rows[first + r];
        const int64_t pivot = i < f_.pivots_ ? i : f_.group_[i];
        limits(list, i, f_.entry(i, pivot), closes[first + r] ? kClosesPivot : 0);
        put(list, i, pivot, f_.entry(i, pivot), r);
      }
      known = after;
    }
  }

  // The rows with variance left, nearest limit first, so that whole tiles of far rows are
  // recognised as such early.
  template <class List>
  void completion(List& list) {
    struct Row {
      double t, sd;
      int64_t i;
    };
    std::vector<Row> rows;
    for (int64_t i = f_.pivots_; i < f_.live_end_; ++i) {
      const double sd = std::sqrt(f_.variance_[i]), mean = f_.mean_[i];
      rows.push_back({std::min(f_.upper_[i] - mean, mean - f_.lower_[i]) / sd, sd, i});
    }
    std::sort(rows.begin(), rows.end(),
              [](const Row& a, const Row& b) { return a.t != b.t ? a.t < b.t : a.i < b.i; });
    clear(list);
    for (size_t first = 0; first < rows.size(); first += block_rows_) {
      const int64_t count = std::min<int64_t>(block_rows_, int64_t(rows.size() - first));
      open(list, first, count, f_.pivots_, f_.pivots_);
      for (int64_t r = 0; r < count; ++r) {
        limits(list, rows[first + r].i, rows[first + r].sd, 0);
        put(list, rows[first + r].i, f_.pivots_, rows[first + r].sd, r);
      }
    }
  }

 private:
  template <class List>
  void clear(List& list) {
    list.blocks.clear();
    list.coef.clear();
    list.upper.clear();
    list.lower.clear();
    list.flags.clear();
    list.position.clear();
  }

  template <class List>
  void open(List& list, size_t first, int64_t count, int64_t known, int64_t after) {
    list.blocks.push_back(
        {int64_t(list.coef.size()), int32_t(first), int32_t(count), int32_t(known)});
    list.coef.resize(list.coef.size() + after * count, 0);
  }

  template <class List>
  void limits(List& list, int64_t i, double divisor, int flags) {
    const plan::Bounds bounds = plan::bounds_on_pivot(f_.lower_[i], f_.upper_[i], divisor);
    using scalar_t = typename decltype(list.coef)::value_type;
    list.upper.push_back(scalar_t(bounds.upper));
    list.lower.push_back(scalar_t(bounds.lower));
    if (bounds.upper < kInfinity) flags |= kHasUpper;
    if (bounds.lower > -kInfinity) flags |= kHasLower;
    list.flags.push_back(uint8_t(flags));
    list.position.push_back(i);
  }

  template <class List>
  void put(List& list, int64_t i, int64_t columns, double divisor, int64_t r) {
    using scalar_t = typename decltype(list.coef)::value_type;
    const Block& block = list.blocks.back();
    const int64_t stored = (int64_t(list.coef.size()) - block.coef) / block.rows;
    for (int64_t l = 0; l < std::min(columns, stored); ++l)
      list.coef[block.coef + l * block.rows + r] = scalar_t(-f_.entry(i, l) / divisor);
  }

  const Factor& f_;
  const int block_rows_;
};

template <class scalar_t>
void PackedProgram<scalar_t>::pack(const Factor& factor, double skip_limit) {
  Packer packer(factor, simd_table().block_rows);
  packer.sampled(sampled_);
  packer.completion(completion_);
  const int64_t pivots = factor.pivots();
  program_ = {sampled_.view(), completion_.view(), int(pivots), scalar_t(skip_limit), nullptr, 0};
  // Phi counts about as 20 multiply-adds, a draw as 60 (bench_math).
  cost_ = double(sampled_.coef.size() + completion_.coef.size()) +
          20.0 * double(completion_.flags.size()) + 60.0 * double(pivots);
}

template class PackedProgram<float>;
template class PackedProgram<double>;

}  // namespace mvnrob
