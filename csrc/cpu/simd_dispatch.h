// Which instruction set the CPU kernels use, decided once per process.
#pragma once

namespace mvnrob {

enum class SimdLevel { generic, avx2, avx512 };

// The best level that was built and that the processor has, or a lower one that the environment
// variable MVNROB_SIMD (generic, avx2, avx512) names; throws std::runtime_error on any other value
// and on a level that is not available.
SimdLevel simd_level();

const char* simd_level_name(SimdLevel level);

template <class Table>
const Table& of_simd_level(const Table& generic, const Table& avx2, const Table& avx512) {
  switch (simd_level()) {
    case SimdLevel::avx512:
      return avx512;
    case SimdLevel::avx2:
      return avx2;
    default:
      return generic;
  }
}

}  // namespace mvnrob

// A symbol of this name per level: MVNROB_SIMD_SYMBOL(table) is table_avx2 in the AVX2 object.
#define MVNROB_SIMD_CONCAT_(a, b) a##_##b
#define MVNROB_SIMD_CONCAT(a, b) MVNROB_SIMD_CONCAT_(a, b)
#define MVNROB_SIMD_SYMBOL(name) MVNROB_SIMD_CONCAT(name, MVNROB_ISA)

// Declares those symbols of every level.
#define MVNROB_SIMD_TABLES(Table, name) \
  extern const Table name##_generic, name##_avx2, name##_avx512

// The table of simd_level(), which is never a level that was not built.
#define MVNROB_SIMD_TABLE(name) \
  mvnrob::of_simd_level(name##_generic, MVNROB_AVX2_TABLE(name), MVNROB_AVX512_TABLE(name))
#ifdef MVNROB_HAS_AVX2
#define MVNROB_AVX2_TABLE(name) name##_avx2
#else
#define MVNROB_AVX2_TABLE(name) name##_generic
#endif
#ifdef MVNROB_HAS_AVX512
#define MVNROB_AVX512_TABLE(name) name##_avx512
#else
#define MVNROB_AVX512_TABLE(name) name##_generic
#endif
