// torch's parallel loop, out of which an exception comes as it is.
#pragma once
#include <cstdint>
#include <exception>
#include <mutex>

#include "torch_utils.h"

namespace mvnrob {

// body(first, last) over ranges of at least `grain` numbers of begin .. end - 1, on torch's
// threads. The first exception that it throws is thrown again here: through torch's interface it
// would come as a call that failed.
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  std::mutex mutex;
  std::exception_ptr first_thrown;
  torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
    try {
      body(first, last);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!first_thrown) first_thrown = std::current_exception();
    }
  });
  if (first_thrown) std::rethrow_exception(first_thrown);
}

}  // namespace mvnrob
