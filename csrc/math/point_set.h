// Which points are sampled (points.h).
#pragma once

namespace mvnrob {

enum class PointSet { lattice, richtmyer, sobol };

}  // namespace mvnrob
