// For modules of kernel bodies: what of them runs as translated PTX (ptx/), and how often it has.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "shim/launch.h"

inline void define_stand_ins(pybind11::module_& m) {
  namespace py = pybind11;
  m.def("stand_in_launches", [] { return mvnrob::shim::stand_ins().launches; });
  m.def(
      "use_stand_ins",
      [](bool wanted, bool required, uint64_t approximate) {
        auto& all = mvnrob::shim::stand_ins();
        all.wanted = wanted;
        all.required = required;
        all.approximate = approximate;
      },
      py::arg("wanted"), py::arg("required") = false, py::arg("approximate") = 0);
}
