// Exact answers: up to three variables, or independent ones.
#pragma once
#include "cpu/mvn_cdf_problem.h"
#include "cpu/mvn_cdf_row.h"

namespace mvnrob {

// True when the answer is exact, with `result` filled in; its status may also be indefinite or nan.
bool closed_form(const Problem& problem, const CovarianceView& cov, RowResult& result);

}  // namespace mvnrob
