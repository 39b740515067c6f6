// The shim's own bodies for tests/test_shim.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>

#include "shim_bad.h"

namespace py = pybind11;
using namespace shim_tests;

PYBIND11_MODULE(MVNROB_MODULE, m) {
  m.attr("sizes") = std::vector<unsigned>(std::begin(kSizes), std::end(kSizes));
  std::vector<std::string> good;
  for (const Good& entry : kGood) good.push_back(entry.name);
  m.attr("good") = good;
  std::vector<std::pair<std::string, std::string>> bad;
  for (const Bad& entry : kBad) bad.emplace_back(entry.name, entry.plain);
  m.attr("bad") = bad;
  m.def("check_good", [](const std::string& name, unsigned threads, unsigned blocks) {
    for (const Good& entry : kGood) {
      if (name == entry.name) return entry.check(threads, blocks);
    }
    throw py::key_error(name);
  });
  m.def("run_bad", [](const std::string& name) {
    for (const Bad& entry : kBad) {
      if (name == entry.name) return entry.run();
    }
    throw py::key_error(name);
  });
  m.def("set_order", &shim::set_order);
  m.def("launch", [](unsigned blocks, size_t shared_bytes) {
    shim::launch<TwoBarriers>(blocks, shared_bytes, {nullptr});
  });
}
