// The names of mvn_cdf's options, on the torch side of every backend.
#pragma once
#include <string>

#include "plan/options.h"
#include "torch_utils.h"

namespace mvnrob {

inline Method method_of(const std::string& name) {
  if (name == "auto") return Method::automatic;
  if (name == "sov") return Method::sov;
  STD_TORCH_CHECK(name == "closed_form", "mvn_cdf: method must be auto, sov or closed_form, got ",
                  name);
  return Method::closed_form;
}

inline ComputeType compute_type_of(const std::string& name) {
  if (name == "auto") return ComputeType::automatic;
  if (name == "float32") return ComputeType::float32;
  STD_TORCH_CHECK(name == "float64",
                  "mvn_cdf: compute_dtype must be auto, float32 or float64, got ", name);
  return ComputeType::float64;
}

inline PointSet point_set_of(const char* op, const std::string& name) {
  if (name == "lattice") return PointSet::lattice;
  if (name == "richtmyer") return PointSet::richtmyer;
  STD_TORCH_CHECK(name == "sobol", op, ": points must be lattice, richtmyer or sobol, got ", name);
  return PointSet::sobol;
}

}  // namespace mvnrob
