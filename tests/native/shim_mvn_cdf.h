// mvn_cdf's kernels run on the shim, launch for launch as on a device.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/mvn_cdf_pathwise_schedule.h"
#include "shim/launch.h"

namespace mvnrob::shim {

struct MvnCdfLauncher : Launcher {
  int64_t resident = 3;

  void clear(void* pointer, size_t bytes) { std::memset(pointer, 0, bytes); }
  template <class Body>
  int64_t resident_blocks(size_t) {
    return resident;
  }
};

// Calls run(memory) with that many bytes, aligned as on a device. They start as 0xFF: NaNs and
// negative counts.
template <class Run>
void with_workspace(int64_t bytes, const Run& run) {
  std::vector<std::max_align_t> memory(size_t(bytes) / sizeof(std::max_align_t) + 17);
  std::memset(memory.data(), 0xFF, memory.size() * sizeof(std::max_align_t));
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  run(reinterpret_cast<unsigned char*>((address + 255) / 256 * 256));
}

// All rows of `whole` (input, output and options set), `tile_rows` at a time; `captured`: the
// rounds as a graph's loop.
template <class scalar_t>
void run_mvn_cdf(const kernels::MvnCdfArgs& whole, int64_t tile_rows, int64_t resident,
                 bool captured = false) {
  MvnCdfLauncher launcher;
  launcher.is_captured = captured;
  launcher.resident = resident;
  for (int64_t first = 0; first < whole.rows; first += tile_rows) {
    const auto a = kernels::tile_of(whole, first, std::min(tile_rows, whole.rows - first));
    const auto grids = kernels::grids_of<scalar_t>(launcher, a, a.rows);
    const kernels::Workspace<scalar_t> workspace(a, a.rows, grids);
    with_workspace(workspace.bytes, [&](unsigned char* memory) {
      kernels::run_tile<scalar_t>(launcher, a, grids, memory);
    });
  }
}

template <class scalar_t>
void run_mvn_cdf_pathwise(const kernels::MvnCdfPathwiseArgs& whole, int64_t tile_rows,
                          int64_t resident) {
  MvnCdfLauncher launcher;
  launcher.resident = resident;
  for (int64_t first = 0; first < whole.plan.rows; first += tile_rows) {
    const auto a = kernels::tile_of(whole, first, std::min(tile_rows, whole.plan.rows - first));
    const auto grids = kernels::pathwise_grids<scalar_t>(launcher, a, a.plan.rows);
    const kernels::PathwiseWorkspace<scalar_t> workspace(a, a.plan.rows, grids);
    with_workspace(workspace.bytes, [&](unsigned char* memory) {
      kernels::run_pathwise_tile<scalar_t>(launcher, a, grids, memory);
    });
  }
}

}  // namespace mvnrob::shim
