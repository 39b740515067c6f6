// What the points' coordinates are made of, computed once and shared.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "math/point_set.h"

namespace mvnrob {

using Generators = std::shared_ptr<const std::vector<uint32_t>>;

// Of at least n coordinates, words_of(set) words each (math/points.h). Safe to call from several
// threads.
Generators generators_of(PointSet set, int64_t n);

}  // namespace mvnrob
