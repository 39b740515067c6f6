// Runs a batch as many rows at a time as memory lets; a row's result does not depend on that.
#pragma once
#include <algorithm>
#include <optional>
#include <string>

#include "cuda/errors.h"
#include "cuda/rows.h"

namespace mvnrob::cuda {

// sizes_of(rows) says what one tile of so many rows needs, with the fields error and bytes;
// launch(first, rows, sizes, memory) runs rows first .. first + rows - 1.
template <class SizesOf, class Launch>
void run_in_tiles(const char* op, int64_t all, int64_t n, const Rows& like, const SizesOf& sizes_of,
                  const Launch& launch) {
  // More at a time is no faster, and leaves less to others.
  constexpr int64_t kMostBytes = int64_t(8) << 30;
  const auto checked = [&](int64_t rows) {
    const auto sizes = sizes_of(rows);
    check(op, sizes.error, "run its kernels");
    return sizes;
  };
  int64_t rows = all;
  auto sizes = checked(rows);
  const auto halve = [&] {
    rows = (rows + 1) / 2;
    sizes = checked(rows);
  };
  while (rows > 1 && sizes.bytes > kMostBytes) halve();
  std::optional<Tensor> memory;
  while (!memory.has_value()) {
    try {
      memory = like.empty({sizes.bytes}, ScalarType::Byte);
    } catch (const OutOfMemory&) {
      if (rows == 1)
        throw OutOfMemory(sizes.bytes, " for one row of " + std::to_string(n) + " variables");
      halve();
    }
  }
  for (int64_t first = 0; first < all; first += rows)
    check(op, launch(first, std::min(rows, all - first), sizes, memory->mutable_data_ptr()),
          "take the launches");
}

}  // namespace mvnrob::cuda
