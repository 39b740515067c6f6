// Which instruction set the CPU kernels use, decided once per process.
#pragma once

namespace mvnrob {

enum class SimdLevel { generic, avx2, avx512 };

// The best level that was built and that the processor has, or a lower one that the environment
// variable MVNROB_SIMD (generic, avx2, avx512) names; throws std::runtime_error on any other value
// and on a level that is not available.
SimdLevel simd_level();

const char* simd_level_name(SimdLevel level);

}  // namespace mvnrob

// A symbol of this name per level: MVNROB_SIMD_SYMBOL(table) is table_avx2 in the AVX2 object.
#define MVNROB_SIMD_CONCAT_(a, b) a##_##b
#define MVNROB_SIMD_CONCAT(a, b) MVNROB_SIMD_CONCAT_(a, b)
#define MVNROB_SIMD_SYMBOL(name) MVNROB_SIMD_CONCAT(name, MVNROB_ISA)
