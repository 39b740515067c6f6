#include "cpu/generators.h"

#include <algorithm>
#include <mutex>

#include "math/points.h"

namespace mvnrob {

Generators generators_of(PointSet set, int64_t n) {
  static std::mutex mutex;
  static Generators tables[3];
  const std::lock_guard<std::mutex> lock(mutex);
  Generators& table = tables[int(set)];
  const int64_t each = math::words_of(set);
  if (!table || int64_t(table->size()) < n * each) {
    const int64_t count = std::max<int64_t>(2 * n, 1024);
    std::vector<uint32_t> richtmyer(count);
    math::fill_richtmyer(richtmyer.data(), int(count));
    auto larger = std::make_shared<std::vector<uint32_t>>(count * each);
    for (int64_t j = 0; j < count; ++j)
      math::fill_coordinate(set, int(j), richtmyer[j], larger->data() + j * each);
    table = larger;
  }
  return table;
}

}  // namespace mvnrob
