// Derivatives of the estimate of one row under a given plan. Torch-free.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/mvn_cdf_factor.h"
#include "cpu/mvn_cdf_pack.h"
#include "cpu/mvn_cdf_pathwise_program.h"
#include "cpu/mvn_cdf_points.h"
#include "cpu/mvn_cdf_tilt.h"

namespace mvnrob {

// Reverse-mode differentiation through separation of variables: the points, the pivots, their order
// and the groups are held fixed. Derivatives are to limits and covariances in the input's units.
class Pathwise {
 public:
  // Samples points first .. first + points - 1 of each shift. The factor must outlive this.
  template <class scalar_t>
  void run(const Factor& factor, uint64_t seed, PointSet set, int64_t first, int64_t points,
           bool wants_cov, const Runner& run);

  // The same, tilted, with the tilt held fixed too; everything is in units of exp(its log_unit).
  void run_tilted(const Factor& factor, const Tilt& tilt, uint64_t seed, PointSet set,
                  int64_t first, int64_t points, bool wants_cov, const Runner& run);

  // Of shift s: the sum of the integrand over its points.
  double value(int s) const { return shifts_[s].value; }

  // Its derivatives; entries of variables that take no part are left alone.
  void to_limits(int s, double* upper, double* lower) const;

  // Adds the derivative of sum_s weight[s] value(s) to the covariance [n][n], half to each of a
  // pair of entries; `variance` gets the square of its standard error, from contrasts of the
  // shifts.
  void to_cov(const double* weight, int64_t n, double* out, double* variance);

  int64_t pivots() const { return f_->pivots(); }

 private:
  // By rows of the program: those sampled, then those that complete.
  struct Sums {
    double value = 0;
    std::vector<double> upper, lower, products;
  };

  template <class scalar_t>
  void sample(const Factor& factor, const PackedProgram<scalar_t>& packed, uint64_t seed,
              PointSet set, int64_t first, int64_t points, bool wants_cov, const Runner& run);
  void find_ties();
  void share_ties(Sums& sums) const;
  void combine(const double* weight);
  void pull_back();
  template <class Add>
  void for_each_entry(const Add& add) const;

  const Factor* f_ = nullptr;
  int64_t sampled_ = 0, stride_ = 0;
  std::vector<int64_t> position_;  // of each row in the factor
  std::vector<int64_t> columns_;   // pivots that it depends on
  std::vector<double> divisor_;    // of its limits and coefficients
  std::vector<plan::Bounds> bounds_;
  // On one side. The products hold both: where only one side meets they stay as they fell.
  struct Tie {
    std::vector<int64_t> rows;
    bool lower, products;
  };
  std::vector<Tie> ties_;
  Sums shifts_[kShifts], all_;
  // By position in the factor, [m][pivots]: the factor, the derivative to it and then to the
  // correlation's columns of the pivots; and to its diagonal.
  std::vector<double> L_, bar_, diagonal_;
};

}  // namespace mvnrob
