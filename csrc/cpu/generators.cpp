#include "cpu/generators.h"

#include <algorithm>
#include <mutex>

#include "math/lattice.h"

namespace mvnrob {

Generators richtmyer_generators(int64_t n) {
  static std::mutex mutex;
  static Generators table;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!table || int64_t(table->size()) < n) {
    auto larger = std::make_shared<std::vector<uint32_t>>(std::max<int64_t>(2 * n, 1024));
    math::fill_richtmyer(larger->data(), int(larger->size()));
    table = larger;
  }
  return table;
}

}  // namespace mvnrob
