#include "cpu/simd_dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "torch_utils.h"

namespace mvnrob {

namespace {

bool available(SimdLevel level) {
  switch (level) {
    case SimdLevel::generic:
      return true;
    case SimdLevel::avx2:
#ifdef MVNROB_HAS_AVX2
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
      return false;
#endif
    case SimdLevel::avx512:
#ifdef MVNROB_HAS_AVX512
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("fma");
#else
      return false;
#endif
  }
  return false;
}

SimdLevel choose() {
  const char* wish = std::getenv("MVNROB_SIMD");
  for (SimdLevel level : {SimdLevel::avx512, SimdLevel::avx2, SimdLevel::generic}) {
    const bool named = wish != nullptr && std::string(wish) == simd_level_name(level);
    if (named && !available(level))
      throw std::runtime_error(std::string("mvnrob: MVNROB_SIMD must name a level of this "
                                           "processor and build, got ") +
                               wish);
    if (named || (wish == nullptr && available(level))) return level;
  }
  throw std::runtime_error(
      std::string("mvnrob: MVNROB_SIMD must be generic, avx2 or avx512, got ") + wish);
}

std::string simd_level_cpu() { return simd_level_name(simd_level()); }

}  // namespace

const char* simd_level_name(SimdLevel level) {
  switch (level) {
    case SimdLevel::avx512:
      return "avx512";
    case SimdLevel::avx2:
      return "avx2";
    default:
      return "generic";
  }
}

SimdLevel simd_level() {
  static const SimdLevel level = choose();
  return level;
}

STABLE_TORCH_LIBRARY_IMPL(mvnrob, CompositeExplicitAutograd, m) {
  m.impl("simd_level", TORCH_BOX(&simd_level_cpu));
}

}  // namespace mvnrob
