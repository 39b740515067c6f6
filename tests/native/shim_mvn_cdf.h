// mvn_cdf's kernels run on the shim, launch for launch as on a device.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/mvn_cdf_schedule.h"
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

// All rows of `a` (input, output and options set), `tile_rows` at a time. The workspace starts as
// 0xFF bytes: NaNs and negative counts.
template <class scalar_t>
void run_mvn_cdf(kernels::MvnCdfArgs a, int64_t tile_rows, int64_t resident) {
  MvnCdfLauncher launcher;
  launcher.resident = resident;
  const kernels::MvnCdfArgs whole = a;
  for (int64_t first = 0; first < whole.rows; first += tile_rows) {
    a = kernels::tile_of(whole, first, std::min(tile_rows, whole.rows - first));
    const kernels::Grids grids = kernels::grids_of<scalar_t>(launcher, a, a.rows);
    const kernels::Workspace<scalar_t> workspace(a, a.rows, grids);
    std::vector<std::max_align_t> memory(workspace.bytes / sizeof(std::max_align_t) + 17);
    std::memset(memory.data(), 0xFF, memory.size() * sizeof(std::max_align_t));
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    auto* base = reinterpret_cast<unsigned char*>((address + 255) / 256 * 256);
    kernels::run_tile<scalar_t>(launcher, a, grids, base);
  }
}

}  // namespace mvnrob::shim
