// pybind11 module: kernels of PTX written out in tests/test_ptx.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "shim/launch.h"

namespace py = pybind11;
using namespace mvnrob;

PYBIND11_MODULE(MVNROB_MODULE, m) {
  // One block of kernel<name>(uint64_t* in, uint64_t* out).
  m.def("run", [](const std::string& name, unsigned threads, size_t shared_bytes,
                  py::array_t<uint64_t> in, py::array_t<uint64_t> out) {
    const void* args[] = {in.mutable_data(), out.mutable_data()};
    shim::Grid grid;
    grid.body = &typeid(args);
    grid.threads = threads;
    grid.blocks = 1;
    grid.shared_bytes = shared_bytes;
    shim::launch_grid(grid, shim::stand_ins().bodies.at(name), args);
  });
}
