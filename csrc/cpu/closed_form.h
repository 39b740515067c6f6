// Exact answers of up to three variables.
#pragma once
#include "cpu/mvn_cdf_problem.h"
#include "math/box.h"
#include "plan/options.h"

namespace mvnrob {

// Of one to three of the variables, by their index in the problem.
math::BoxProbability box_of(const Problem& problem, const CovarianceView& cov, const int64_t* index,
                            int size);

// The variables are at most three.
math::BoxProbability closed_form(const Problem& problem, const CovarianceView& cov);

}  // namespace mvnrob
