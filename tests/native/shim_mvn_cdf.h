// mvn_cdf's kernels run on the shim, launch for launch as on a device.
#pragma once
#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>
#include <vector>

#include "kernels/mvn_cdf_pathwise_schedule.h"
#include "shim/launch.h"

namespace mvnrob::shim {

// The rounds of mvn_cdf's launches, one number for each, of all calls.
inline std::vector<int32_t>& launched_rounds() {
  static std::vector<int32_t> rounds;
  return rounds;
}

struct MvnCdfLauncher : Launcher {
  int64_t resident = 3, together = 0;  // blocks of a device; no cooperative launches

  template <class Body>
  void launch(unsigned blocks, size_t shared_bytes, const typename Body::Args& args) {
    const int64_t before = launches();
    Launcher::launch<Body>(blocks, shared_bytes, args);
    if constexpr (std::is_same_v<typename Body::Args, kernels::MvnCdfArgs>)
      if (launches() > before) launched_rounds().push_back(args.launch_round);
  }
  void clear(void* pointer, size_t bytes) { std::memset(pointer, 0, bytes); }
  template <class Body>
  int64_t resident_blocks(size_t) {
    return resident;
  }
  template <class Body>
  int64_t resident_together(size_t) {
    return together;
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

// How often a row was left to the whole grid, of all calls.
inline int64_t& grown() {
  static int64_t count = 0;
  return count;
}

inline void count_grown(const kernels::MvnCdfArgs& a, const void* counters) {
  const auto* rounds = static_cast<const kernels::RoundCounters*>(counters);
  for (int32_t r = 0; r <= kernels::max_rounds(a); ++r) grown() += rounds[r].grown;
}

// All rows of `whole` (input, output and options set), `tile_rows` at a time, on a device that
// holds `together` blocks of a cooperative launch; `captured`: the rounds as a graph's loop;
// `host_lag`: see Launcher.
template <class scalar_t>
void run_mvn_cdf(const kernels::MvnCdfArgs& whole, int64_t tile_rows, int64_t resident,
                 bool captured = false, int64_t together = 0, std::optional<int64_t> host_lag = 0) {
  for (int64_t first = 0; first < whole.rows; first += tile_rows) {
    MvnCdfLauncher launcher;
    launcher.is_captured = captured;
    launcher.resident = resident;
    launcher.together = together;
    launcher.host_lag = host_lag;
    const auto a = kernels::tile_of(whole, first, std::min(tile_rows, whole.rows - first));
    const auto grids = kernels::grids_of<scalar_t>(launcher, a, a.rows);
    const kernels::Workspace<scalar_t> workspace(a, a.rows, grids);
    with_workspace(workspace.bytes, [&](unsigned char* memory) {
      kernels::run_tile<scalar_t>(launcher, a, grids, memory);
      count_grown(a, memory + workspace.counters);
    });
  }
}

template <class scalar_t>
void run_mvn_cdf_pathwise(const kernels::MvnCdfPathwiseArgs& whole, int64_t tile_rows,
                          int64_t resident, int64_t together = 0) {
  MvnCdfLauncher launcher;
  launcher.resident = resident;
  launcher.together = together;
  for (int64_t first = 0; first < whole.plan.rows; first += tile_rows) {
    const auto a = kernels::tile_of(whole, first, std::min(tile_rows, whole.plan.rows - first));
    const auto grids = kernels::pathwise_grids<scalar_t>(launcher, a, a.plan.rows);
    const kernels::PathwiseWorkspace<scalar_t> workspace(a, a.plan.rows, grids);
    with_workspace(workspace.bytes, [&](unsigned char* memory) {
      kernels::run_pathwise_tile<scalar_t>(launcher, a, grids, memory);
      count_grown(a.plan, memory + workspace.plan.counters);
    });
  }
}

}  // namespace mvnrob::shim
