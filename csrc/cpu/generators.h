// The Richtmyer generators, computed once and shared.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

namespace mvnrob {

using Generators = std::shared_ptr<const std::vector<uint32_t>>;

// At least n of them. Safe to call from several threads.
Generators richtmyer_generators(int64_t n);

}  // namespace mvnrob
