#include "cpu/mvn_cdf_nearest.h"

#include <cmath>

namespace mvnrob {

plan::FoundNearest Nearest::find(const Factor& factor) {
  factor_ = &factor;
  rows_ = factor.m_;
  columns_ = factor.pivots_;
  entries_.resize(rows_ * columns_);
  for (int64_t i = 0; i < rows_; ++i)
    for (int64_t l = 0; l < columns_; ++l)
      entries_[i * columns_ + l] = factor.has_entry(i, l) ? factor.entry(i, l) : 0.0;
  arrays_.assign(plan::kNearestArrays * rows_, 0.0);
  const plan::FoundNearest found = plan::NearestPoint<Nearest>(*this).find();
  multipliers_.assign(rows_, 0.0);
  const double* multiplier = array(plan::kMultiplier);
  for (int64_t i = 0; i < rows_; ++i)
    if (std::abs(multiplier[i]) > plan::kLeastMultiplier * found.largest)
      multipliers_[factor.position_[i]] = multiplier[i];
  return found;
}

}  // namespace mvnrob
