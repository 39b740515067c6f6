// Every device function of csrc/math in a kernel: compiled, never run, by tests/test_math.py.
#include "bivariate.h"
#include "lattice.h"
#include "normal.h"
#include "owens_t.h"
#include "trivariate.h"

namespace math = mvnrob::math;

template <class T>
__global__ void step_kernel(const T* a, const T* b, T* out, uint32_t generator, uint64_t seed) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  T w, wc, e, ec, y, f, fc, z;
  math::lattice_point<T>(uint32_t(i), generator, math::hash_shift(seed, 1, 2), w, wc);
  math::step_upper(b[i], w, wc, e, ec, y);
  math::step_interval(a[i], b[i], w, wc, f, fc, z);
  out[i] = e * y + ec + f * z + fc;
}

template <class T>
__global__ void function_kernel(const T* x, T* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  T p, q;
  math::ndtr_pair(x[i], p, q);
  out[i] = p + q + math::ndtri(p) + math::ndtri_half(q) + math::log_ndtr(x[i]) + math::ndtr(x[i]);
}

__global__ void bivariate_kernel(const double* x, double* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const double* r = x + 3 * i;
  out[i] = math::bvn_cdf(r[0], r[1], r[2]) + math::bvn_complement(r[0], r[1], r[2]) +
           math::owens_t(r[0], r[1]);
}

__global__ void trivariate_kernel(const double* x, double* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const double* r = x + 6 * i;
  out[i] = math::tvn_cdf(r[0], r[1], r[2], r[3], r[4], r[5]) +
           math::tvn_complement(r[0], r[1], r[2], r[3], r[4], r[5]);
}

template __global__ void step_kernel<float>(const float*, const float*, float*, uint32_t, uint64_t);
template __global__ void step_kernel<double>(const double*, const double*, double*, uint32_t,
                                             uint64_t);
template __global__ void function_kernel<float>(const float*, float*);
template __global__ void function_kernel<double>(const double*, double*);
