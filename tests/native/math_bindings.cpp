// csrc/math over NumPy arrays, for tests/test_math.py. build.py compiles it once per instruction
// set.
//
// Every elementwise function takes `mode`: "scalar" calls it with plain float or double, "pack"
// with the packs of one register, "wide" with packs of four registers.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <string>
#include <vector>

#include "bivariate.h"
#include "lattice.h"
#include "mendell_elston.h"
#include "normal.h"
#include "owens_t.h"
#include "points.h"
#include "quadrature.h"
#include "trivariate.h"

namespace py = pybind11;
namespace math = mvnrob::math;

namespace {

template <class S>
using Array = py::array_t<S, py::array::c_style>;

template <class P, class S, int kIn, int kOut, class F>
void apply(const F& f, const std::array<const S*, kIn>& in, const std::array<S*, kOut>& out,
           int64_t n) {
  constexpr int w = math::width<P>;
  for (int64_t i = 0; i < n; i += w) {
    const int64_t lanes = n - i < w ? n - i : w;
    P x[kIn], y[kOut];
    if constexpr (w == 1) {
      for (int k = 0; k < kIn; ++k) x[k] = in[k][i];
      f(x, y);
      for (int k = 0; k < kOut; ++k) out[k][i] = y[k];
    } else {
      S buffer[w] = {};
      for (int k = 0; k < kIn; ++k) {
        std::copy_n(in[k] + i, lanes, buffer);
        x[k] = P::load(buffer);
      }
      f(x, y);
      for (int k = 0; k < kOut; ++k) {
        y[k].store(buffer);
        std::copy_n(buffer, lanes, out[k] + i);
      }
    }
  }
}

template <class S, int kIn, int kOut, class F>
py::object map(const F& f, std::array<Array<S>, kIn> in, const std::string& mode) {
  std::array<const S*, kIn> src;
  for (int k = 0; k < kIn; ++k) {
    if (in[k].size() != in[0].size()) throw py::value_error("arrays must have one size");
    src[k] = in[k].data();
  }
  std::array<Array<S>, kOut> result;
  std::array<S*, kOut> dst;
  for (int k = 0; k < kOut; ++k) {
    result[k] = Array<S>(in[0].size());
    dst[k] = result[k].mutable_data();
  }
  const int64_t n = in[0].size();
  if (mode == "scalar") {
    apply<S, S, kIn, kOut>(f, src, dst, n);
  } else if (mode == "pack") {
    apply<math::Pack<S, math::native_width<S>>, S, kIn, kOut>(f, src, dst, n);
  } else if (mode == "wide") {
    apply<math::Pack<S, 4 * math::native_width<S>>, S, kIn, kOut>(f, src, dst, n);
  } else {
    throw py::value_error("mode must be scalar, pack or wide, got " + mode);
  }
  if constexpr (kOut == 1) {
    return result[0];
  } else {
    py::tuple all(kOut);
    for (int k = 0; k < kOut; ++k) all[k] = result[k];
    return all;
  }
}

template <class S, int kIn, int kOut, class F>
void define_one(py::module_& m, const char* name, F f) {
  const py::arg_v mode = py::arg("mode") = "pack";
  if constexpr (kIn == 1) {
    m.def(
        name, [f](Array<S> a, const std::string& how) { return map<S, 1, kOut>(f, {a}, how); },
        py::arg().noconvert(), mode);
  } else if constexpr (kIn == 2) {
    m.def(
        name,
        [f](Array<S> a, Array<S> b, const std::string& how) {
          return map<S, 2, kOut>(f, {a, b}, how);
        },
        py::arg().noconvert(), py::arg().noconvert(), mode);
  } else if constexpr (kIn == 3) {
    m.def(
        name,
        [f](Array<S> a, Array<S> b, Array<S> c, const std::string& how) {
          return map<S, 3, kOut>(f, {a, b, c}, how);
        },
        py::arg().noconvert(), py::arg().noconvert(), py::arg().noconvert(), mode);
  } else {
    m.def(
        name,
        [f](Array<S> a, Array<S> b, Array<S> c, Array<S> d, const std::string& how) {
          return map<S, 4, kOut>(f, {a, b, c, d}, how);
        },
        py::arg().noconvert(), py::arg().noconvert(), py::arg().noconvert(), py::arg().noconvert(),
        mode);
  }
}

// f(const T* in, T* out), for every T.
template <int kIn, int kOut, class F>
void define(py::module_& m, const char* name, F f) {
  define_one<float, kIn, kOut>(m, name, f);
  define_one<double, kIn, kOut>(m, name, f);
}

template <class P, class S>
void lattice_into(const uint32_t* k, uint32_t a, uint32_t s, S* w, S* wc, int64_t n) {
  constexpr int lanes = math::width<P>;
  for (int64_t i = 0; i + lanes <= n; i += lanes) {
    P x, y;
    if constexpr (lanes == 1) {
      math::lattice_point<P>(k[i], a, s, w[i], wc[i]);
    } else {
      math::lattice_point<P>(math::UintPackOf<P>::load(k + i), a, s, x, y);
      x.store(w + i);
      y.store(wc + i);
    }
  }
}

// By scalars and by packs, which must agree: [2, n] for w and for 1 - w.
template <class S>
py::tuple scrambled(Array<uint32_t> x, uint32_t seed) {
  using P = math::Pack<S, math::native_width<S>>;
  const int64_t n = x.size();
  if (n % math::width<P> != 0) throw py::value_error("size must be a multiple of the packs");
  Array<S> w({int64_t(2), n}), wc({int64_t(2), n});
  for (int64_t i = 0; i < n; ++i)
    math::scrambled_point<S>(x.data()[i], seed, w.mutable_data()[i], wc.mutable_data()[i]);
  for (int64_t i = 0; i < n; i += math::width<P>) {
    P a, b;
    math::scrambled_point<P>(math::UintPackOf<P>::load(x.data() + i), seed, a, b);
    a.store(w.mutable_data() + n + i);
    b.store(wc.mutable_data() + n + i);
  }
  return py::make_tuple(w, wc);
}

template <class S>
py::tuple lattice(Array<uint32_t> k, uint32_t a, uint32_t s, const std::string& mode) {
  constexpr int lanes = math::native_width<S>;
  Array<S> w(k.size()), wc(k.size());
  if (k.size() % (4 * lanes) != 0) throw py::value_error("size must be a multiple of the packs");
  if (mode == "scalar") {
    lattice_into<S>(k.data(), a, s, w.mutable_data(), wc.mutable_data(), k.size());
  } else if (mode == "pack") {
    lattice_into<math::Pack<S, lanes>>(k.data(), a, s, w.mutable_data(), wc.mutable_data(),
                                       k.size());
  } else {
    lattice_into<math::Pack<S, 4 * lanes>>(k.data(), a, s, w.mutable_data(), wc.mutable_data(),
                                           k.size());
  }
  return py::make_tuple(w, wc);
}

// Sum, least and largest lane of one pack of W lanes, and whether a lane exceeds the bound.
template <class S, int W>
py::tuple reduce(Array<S> x, S bound) {
  if (x.size() != W) throw py::value_error("one pack at a time");
  const auto p = math::Pack<S, W>::load(x.data());
  return py::make_tuple(math::reduce_add(p), math::reduce_min(p), math::reduce_max(p),
                        math::any(p > math::Pack<S, W>(bound)));
}

template <class F>
void define_double(py::module_& m, const char* name, F f) {
  m.def(name, py::vectorize(f));
}

}  // namespace

#define MVNROB_TEXT_(x) #x
#define MVNROB_TEXT(x) MVNROB_TEXT_(x)

PYBIND11_MODULE(MVNROB_MODULE, m) {
  m.attr("isa") = MVNROB_TEXT(MVNROB_ISA);
  m.attr("fused") = bool(MVNROB_FUSED);
  m.attr("vector_bytes") = MVNROB_VECTOR_BYTES;

  define<1, 1>(m, "ndtr", [](const auto* x, auto* y) { y[0] = math::ndtr(x[0]); });
  define<1, 2>(m, "ndtr_pair", [](const auto* x, auto* y) { math::ndtr_pair(x[0], y[0], y[1]); });
  define<1, 1>(m, "ndtri", [](const auto* x, auto* y) { y[0] = math::ndtri(x[0]); });
  define<1, 1>(m, "ndtri_half", [](const auto* x, auto* y) { y[0] = math::ndtri_half(x[0]); });
  define<1, 1>(m, "log_ndtr", [](const auto* x, auto* y) { y[0] = math::log_ndtr(x[0]); });
  define<3, 3>(m, "step_upper", [](const auto* x, auto* y) {
    math::step_upper(x[0], x[1], x[2], y[0], y[1], y[2]);
  });
  define<4, 3>(m, "step_interval", [](const auto* x, auto* y) {
    math::step_interval(x[0], x[1], x[2], x[3], y[0], y[1], y[2]);
  });

  define<4, 3>(m, "step_interval_far", [](const auto* x, auto* y) {
    using T = std::decay_t<decltype(x[0])>;
    math::step_interval<T, true>(x[0], x[1], x[2], x[3], y[0], y[1], y[2]);
  });
  define<2, 1>(m, "minus_two_log_interval",
               [](const auto* x, auto* y) { y[0] = math::minus_two_log_interval(x[0], x[1]); });

  define_one<double, 2, 1>(m, "two_log_interval", [](const auto* x, auto* y) {
    y[0] = math::two_log_interval(x[0], x[1]);
  });
  m.def("truncated", [](const Array<double>& a, const Array<double>& b) {
    Array<double> out({int64_t(a.size()), int64_t(8)});
    for (int64_t i = 0; i < a.size(); ++i) {
      const math::Truncated t = math::truncated(a.data()[i], b.data()[i]);
      const double fields[] = {t.log_mass,   t.mean,     t.variance, t.shrink,
                               t.from_lower, t.to_upper, t.at_lower, t.at_upper};
      std::copy_n(fields, 8, out.mutable_data() + 8 * i);
    }
    return out;
  });

  define<1, 2>(m, "square", [](const auto* x, auto* y) { math::square(x[0], y[0], y[1]); });
  define<2, 1>(m, "minus_two_log",
               [](const auto* x, auto* y) { y[0] = math::minus_two_log(x[0], x[1]); });
  define<3, 1>(m, "times_exp_half",
               [](const auto* x, auto* y) { y[0] = math::times_exp_half(x[0], x[1], x[2]); });

  define<3, 1>(m, "fma", [](const auto* x, auto* y) { y[0] = math::fma(x[0], x[1], x[2]); });
  define<1, 1>(m, "sqrt", [](const auto* x, auto* y) { y[0] = math::sqrt(x[0]); });
  define<1, 1>(m, "abs", [](const auto* x, auto* y) { y[0] = math::abs(x[0]); });
  define<2, 1>(m, "min", [](const auto* x, auto* y) { y[0] = math::min(x[0], x[1]); });
  define<2, 1>(m, "max", [](const auto* x, auto* y) { y[0] = math::max(x[0], x[1]); });
  define<2, 1>(m, "copysign", [](const auto* x, auto* y) { y[0] = math::copysign(x[0], x[1]); });
  define<2, 1>(m, "mulsign", [](const auto* x, auto* y) { y[0] = math::mulsign(x[0], x[1]); });
  define<4, 1>(m, "select_in", [](const auto* x, auto* y) {  // x1 <= x0 < x2 ? x3 : x0
    y[0] = math::select((x[0] >= x[1]) & (x[0] < x[2]), x[3], x[0]);
  });
  m.def("reduce_f4", &reduce<float, 4>);
  m.def("reduce_f64", &reduce<float, 64>);
  m.def("reduce_d2", &reduce<double, 2>);
  m.def("reduce_d32", &reduce<double, 32>);

  m.def("lattice_float", &lattice<float>, py::arg(), py::arg(), py::arg(),
        py::arg("mode") = "pack");
  m.def("lattice_double", &lattice<double>, py::arg(), py::arg(), py::arg(),
        py::arg("mode") = "pack");
  m.def("hash_shift", py::vectorize([](uint64_t seed, uint32_t replicate, uint32_t dimension) {
          return math::hash_shift(seed, replicate, dimension);
        }));
  m.def("fill_richtmyer", [](int n) {
    Array<uint32_t> a(n);
    math::fill_richtmyer(a.mutable_data(), n);
    return a;
  });
  m.def("richtmyer_generator", &math::richtmyer_generator);
  m.attr("lattice_bits") = math::tables::kLatticeBits;
  m.attr("lattice_dimensions") = math::tables::kLatticeDimensions;
  m.attr("sobol_dimensions") = math::tables::kSobolDimensions;
  m.def("lattice_generator", &math::tables::lattice_generator);
  m.def("embedded_generator", &math::embedded_generator);
  m.def("reverse_bits", py::vectorize([](uint32_t x) { return math::reverse_bits(x); }));
  m.def("fill_sobol", [](int dimension) {
    Array<uint32_t> words(math::kSobolBits);
    math::fill_sobol(words.mutable_data(), dimension);
    return words;
  });
  m.def("sobol_word",
        [](Array<uint32_t> words, uint32_t k) { return math::sobol_word(words.data(), k); });
  m.def("scrambled_float", &scrambled<float>);
  m.def("scrambled_double", &scrambled<double>);

  using Two = double (*)(double, double);
  using Three = double (*)(double, double, double);
  using Six = double (*)(double, double, double, double, double, double);
  m.def("owens_t", py::vectorize(static_cast<Two>(math::owens_t)));
  m.def("bvn_upper", py::vectorize(static_cast<Three>(math::bvn_upper)));
  m.def("bvn_cdf", py::vectorize(static_cast<Three>(math::bvn_cdf)));
  m.def("bvn_complement", py::vectorize(static_cast<Three>(math::bvn_complement)));
  m.def("tvn_cdf", py::vectorize(static_cast<Six>(math::tvn_cdf)));
  m.def("tvn_complement", py::vectorize(static_cast<Six>(math::tvn_complement)));
  m.def("bvn_cdf_float",
        py::vectorize([](float h, float k, float rho) { return math::bvn_cdf(h, k, rho); }));
  m.def("tvn_cdf_float", py::vectorize([](float a, float b, float c, float r, float s, float t) {
          return math::tvn_cdf(a, b, c, r, s, t);
        }));
  m.def("sine_quarter", py::vectorize([](double x) { return math::sine_quarter(x); }));
}
