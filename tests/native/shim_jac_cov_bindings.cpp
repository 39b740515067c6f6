// pybind11 module: jac_cov's ops by the CUDA kernels' bodies on the shim. bfloat16 comes as its
// bits, uint16.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "shim_jac_cov.h"
#include "stand_in_bindings.h"

namespace py = pybind11;
using namespace mvnrob;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// As numpy holds an element of J.
template <class in_t>
struct Stored {
  using type = in_t;
};
template <>
struct Stored<kernels::BFloat16> {
  using type = uint16_t;
};

template <class T>
kernels::JacArgs arguments(const py::array_t<T>& J, const Array<int64_t>& target) {
  if (J.shape(2) > 1 && J.strides(2) != sizeof(T))
    throw std::invalid_argument("J: columns must lie side by side");
  kernels::JacArgs a{};
  a.J = J.data();
  a.batch_stride = J.strides(0) / py::ssize_t(sizeof(T));
  a.row_stride = J.strides(1) / py::ssize_t(sizeof(T));
  a.classes = J.shape(1);
  a.columns = J.shape(2);
  a.target = target.data();
  return a;
}

template <class in_t>
void accumulate(py::array_t<double> S, const py::array_t<typename Stored<in_t>::type>& J,
                const Array<int64_t>& target, int64_t resident, int64_t problems, int64_t chunks) {
  shim::run_jac_cov<in_t>(arguments(J, target), J.shape(0), S.mutable_data(), resident, problems,
                          chunks);
}

template <class in_t>
Array<double> norms(const py::array_t<typename Stored<in_t>::type>& J, const Array<int64_t>& target,
                    int64_t problems, int64_t chunks) {
  Array<double> out({J.shape(0), J.shape(1)});
  shim::run_jac_norms<in_t>(arguments(J, target), J.shape(0), out.mutable_data(), problems, chunks);
  return out;
}

template <class S_t, class T>
py::tuple finalize(const Array<S_t>& S, const Array<T>& logits, const Array<int64_t>& target,
                   const Array<double>& sigma) {
  const py::ssize_t batch = logits.shape(0), n = logits.shape(1) - 1;
  Array<T> z({batch, n}), norms({batch, n}), corr({batch, n, n});
  shim::run_jac_finalize({S.data(), logits.data(), target.data(), sigma.data(), z.mutable_data(),
                          norms.mutable_data(), corr.mutable_data(), nullptr, batch, n + 1,
                          sizeof(S_t) == 8, sizeof(T) == 8});
  return py::make_tuple(z, corr, norms);
}

template <class from_t, class to_t>
Array<to_t> convert(const Array<from_t>& from) {
  Array<to_t> to(from.size());
  shim::JacCovLauncher launcher;
  kernels::run_jac_convert(launcher, from.data(), to.mutable_data(), int64_t(from.size()));
  return to;
}

Array<float> from_half(const Array<uint16_t>& bits) {
  Array<float> out(bits.size());
  for (py::ssize_t i = 0; i < bits.size(); ++i)
    out.mutable_data()[i] = shim::half_to_float(bits.data()[i]);
  return out;
}

Array<uint16_t> to_half(const Array<float>& x) {
  Array<uint16_t> out(x.size());
  for (py::ssize_t i = 0; i < x.size(); ++i)
    out.mutable_data()[i] = uint16_t(shim::float_to_half(x.data()[i]));
  return out;
}

template <class in_t>
void define(py::module_& m) {
  m.def("accumulate", &accumulate<in_t>, py::arg("S").noconvert(), py::arg("J").noconvert(),
        py::arg("target"), py::arg("resident") = 3, py::arg("problems") = 0, py::arg("chunks") = 0);
  m.def("norms", &norms<in_t>, py::arg("J").noconvert(), py::arg("target"), py::arg("problems") = 0,
        py::arg("chunks") = 0);
}

}  // namespace

PYBIND11_MODULE(MVNROB_MODULE, m) {
  define<float>(m);
  define<double>(m);
  define<kernels::BFloat16>(m);
  m.def("finalize", &finalize<double, double>, py::arg("S").noconvert(),
        py::arg("logits").noconvert(), py::arg("target"), py::arg("sigma"));
  m.def("finalize", &finalize<float, double>, py::arg("S").noconvert(),
        py::arg("logits").noconvert(), py::arg("target"), py::arg("sigma"));
  m.def("finalize", &finalize<double, float>, py::arg("S").noconvert(),
        py::arg("logits").noconvert(), py::arg("target"), py::arg("sigma"));
  m.def("finalize", &finalize<float, float>, py::arg("S").noconvert(),
        py::arg("logits").noconvert(), py::arg("target"), py::arg("sigma"));
  m.def("to_double", &convert<float, double>);
  m.def("to_float", &convert<double, float>);
  m.def("from_half", &from_half);
  m.def("to_half", &to_half);
  define_stand_ins(m);
  m.def("set_order", [](uint64_t seed) { shim::set_order(seed); });
}
