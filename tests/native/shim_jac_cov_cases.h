// jac_cov's kernels on Jacobians of small integers, for the sanitizers: every sum is exact in every
// type, and a wrong one throws.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "math/pack.h"
#include "shim_jac_cov.h"

namespace shim_tests {

inline void set_element(float& x, int value) { x = float(value); }
inline void set_element(double& x, int value) { x = value; }
inline void set_element(mvnrob::kernels::BFloat16& x, int value) {
  x.bits = uint16_t(mvnrob::math::as_uint(float(value)) >> 16);
}

// Resident blocks decide whether tiles are cut into chunks.
template <class in_t>
void check_jac_cov(int64_t batch, int64_t classes, int64_t columns, int64_t resident) {
  const auto element = [&](int64_t b, int64_t i, int64_t k) {
    return int((b * 7 + i * i * 5 + k * 3 + i * k) % 7) - 3;
  };
  std::vector<in_t> J(batch * classes * columns);
  std::vector<int64_t> target(batch);
  for (int64_t b = 0; b < batch; ++b) {
    target[b] = (3 * b + 1) % classes;
    for (int64_t i = 0; i < classes; ++i)
      for (int64_t k = 0; k < columns; ++k)
        set_element(J[(b * classes + i) * columns + k], element(b, i, k));
  }
  mvnrob::kernels::JacArgs args{};
  args.J = J.data();
  args.batch_stride = classes * columns;
  args.row_stride = columns;
  args.classes = classes;
  args.columns = columns;
  args.target = target.data();
  std::vector<double> S(batch * classes * classes, 1.0), norms(batch * classes);
  mvnrob::shim::run_jac_cov<in_t>(args, batch, S.data(), resident, 0, 0);
  mvnrob::shim::run_jac_norms<in_t>(args, batch, norms.data(), 0, 0);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < classes; ++i)
      for (int64_t j = 0; j < classes; ++j) {
        int64_t sum = 0;
        for (int64_t k = 0; k < columns; ++k) {
          const int t = element(b, target[b], k);
          sum += (t - element(b, i, k)) * (t - element(b, j, k));
        }
        if (S[(b * classes + i) * classes + j] != double(1 + sum) ||
            (i == j && norms[b * classes + i] != double(sum)))
          throw std::runtime_error("wrong sum of " + std::to_string(classes) + " classes at " +
                                   std::to_string(i) + ", " + std::to_string(j));
      }
}

template <class in_t>
void check_jac_cov_kernels() {
  check_jac_cov<in_t>(3, 6, 1100, 3);
  check_jac_cov<in_t>(2, 20, 600, 3);
  check_jac_cov<in_t>(1, 104, 33, 3);
  check_jac_cov<in_t>(1, 110, 40, 3);
}

// Two tiles across, two chunks: by their own blocks, and in one.
inline void check_jac_cov_tiles() {
  check_jac_cov<double>(1, 130, 520, 3);
  check_jac_cov<double>(1, 130, 520, 1);
}

// Rows i e_k, no two of one norm, are multiplied as they are; a second problem of ones, where there
// is one, subtracts.
inline void check_jac_cov_gram(int64_t classes, int64_t columns, int64_t pitch, int64_t resident,
                               int64_t problems = 2) {
  std::vector<mvnrob::kernels::BFloat16> J(problems * classes * pitch);
  const auto element = [&](int64_t b, int64_t i, int64_t k) {
    return b > 0 ? 1 : k == i * 37 % columns ? int(i) : 0;
  };
  for (int64_t b = 0; b < problems; ++b)
    for (int64_t i = 0; i < classes; ++i)
      for (int64_t k = 0; k < columns; ++k)
        set_element(J[(b * classes + i) * pitch + k], element(b, i, k));
  const std::vector<int64_t> target{0, 3};
  mvnrob::kernels::JacArgs args{};
  args.J = J.data();
  args.batch_stride = classes * pitch;
  args.row_stride = pitch;
  args.classes = classes;
  args.columns = columns;
  args.target = target.data();
  std::vector<double> S(problems * classes * classes, 1.0);
  mvnrob::shim::run_jac_cov<mvnrob::kernels::BFloat16>(args, problems, S.data(), resident, 0, 0);
  for (int64_t i = 0; i < classes; ++i)
    for (int64_t j = 0; j < classes; ++j) {
      const int64_t product = i * 37 % columns == j * 37 % columns ? i * j : 0;
      if (S[i * classes + j] != double(1 + product) ||
          (problems > 1 && S[(classes + i) * classes + j] != 1.0))
        throw std::runtime_error("wrong product of " + std::to_string(i) + ", " +
                                 std::to_string(j));
    }
}

inline void check_jac_cov_grams() {
  check_jac_cov_gram(140, 203, 208, 1);
  check_jac_cov_gram(110, 1033, 1033, 100);     // two chunks of those who subtract
  check_jac_cov_gram(110, 2057, 2064, 100, 1);  // two chunks of products
}

inline void check_jac_cov_finalize() {
  const int64_t batch = 2, classes = 5;
  std::vector<float> S(batch * classes * classes), logits(batch * classes), z(batch * 4),
      norms(batch * 4), corr(batch * 16);
  const std::vector<int64_t> target{4, 0};
  const std::vector<double> sigma{0.5, 2};
  for (int64_t k = 0; k < batch * classes * classes; ++k) S[k] = k / 5 % 5 == k % 5 ? 4 : 2;
  for (int64_t b = 0; b < batch; ++b) logits[b * classes + target[b]] = 1;
  mvnrob::shim::run_jac_finalize({S.data(), logits.data(), target.data(), sigma.data(), z.data(),
                                  norms.data(), corr.data(), nullptr, batch, classes, false,
                                  false});
  for (int64_t k = 0; k < batch * 16; ++k)
    if (corr[k] != (k / 4 % 4 == k % 4 ? 1.0f : 0.5f) || norms[k / 4] != 2 ||
        z[k / 4] != (k < 16 ? 1.0f : 0.25f))
      throw std::runtime_error("wrong correlation at " + std::to_string(k));
}

struct JacCovCase {
  const char* name;
  void (*run)();
};

const JacCovCase kJacCovCases[] = {
    {"jac_cov_float", check_jac_cov_kernels<float>},
    {"jac_cov_double", check_jac_cov_kernels<double>},
    {"jac_cov_bfloat16", check_jac_cov_kernels<mvnrob::kernels::BFloat16>},
    {"jac_cov_tiles", check_jac_cov_tiles},
    {"jac_cov_grams", check_jac_cov_grams},
    {"jac_cov_finalize", check_jac_cov_finalize},
};

}  // namespace shim_tests
