// mendell_elston's kernels run on the shim as on a device.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/mendell_elston.h"
#include "shim_mvn_cdf.h"

namespace mvnrob::shim {

// `a` has its input and output; memory starts as 0xFF bytes: NaNs and negative counts.
inline void run_mendell_elston(kernels::MendellElstonArgs a, int64_t resident) {
  MvnCdfLauncher launcher;
  launcher.resident = resident;
  if (a.rows == 0 || (a.grad && a.n == 0)) return;
  const int64_t blocks = kernels::sweep_blocks(launcher, a);
  a.block_bytes = std::max<int64_t>(kernels::sweep_bytes(a), 128);
  std::vector<std::max_align_t> memory(blocks * a.block_bytes / sizeof(std::max_align_t) + 1);
  std::memset(memory.data(), 0xFF, memory.size() * sizeof(std::max_align_t));
  a.memory = reinterpret_cast<unsigned char*>(memory.data());
  kernels::run_sweep(launcher, a, blocks);
}

}  // namespace mvnrob::shim
