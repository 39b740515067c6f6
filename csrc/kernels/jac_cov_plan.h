// How the work of jac_cov is cut into launches. Of the host.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/jac_cov_args.h"

namespace mvnrob::kernels {

// Blocks walk on with the stride of the grid where there is more work than this.
inline unsigned jac_grid(int64_t wanted) {
  return unsigned(std::max<int64_t>(1, std::min<int64_t>(wanted, int64_t(1) << 30)));
}

// One at least: without columns it has nothing in it, and its sums are zero.
inline int64_t jac_chunks(int64_t columns, int64_t each) {
  return std::max<int64_t>(1, (columns + each - 1) / each);
}
template <class in_t>
int64_t jac_chunks(int64_t columns) {
  return jac_chunks(columns, kJacChunk<in_t>);
}

// How many problems, and chunks of their columns, go through one launch, and the memory for that.
struct JacPlan {
  int64_t problems, chunks, bytes;
};

// Of jac_cov_accumulate: its memory is for sums of chunks, then squared norms, products with row t
// and who subtracts (jac_cov_gram.h), then the chunks of norms and products.
struct JacCovPlan {
  JacPlan sums;   // of no bytes where a block adds up all chunks of its tile
  JacPlan grams;  // the same of jac_cov_gram.h, in the same memory
  JacPlan norms;
  int64_t squares, products, subtracts;  // bytes

  int64_t sums_bytes() const { return std::max(sums.bytes, grams.bytes); }
  int64_t bytes() const { return sums_bytes() + squares + products + subtracts + norms.bytes; }
};

// More sums of chunks than this would no longer come back from the L2 cache.
constexpr int64_t kJacMostBytes = int64_t(64) << 20;

inline JacPlan jac_plan(int64_t batch, int64_t chunks, int64_t bytes_each) {
  const int64_t most = std::max<int64_t>(1, kJacMostBytes / bytes_each);
  JacPlan plan;
  plan.chunks = std::min(chunks, most);
  plan.problems =
      plan.chunks < chunks ? 1 : std::min(batch, std::max<int64_t>(1, most / plan.chunks));
  plan.bytes = plan.problems * plan.chunks * bytes_each;
  return plan;
}

// Calls launch(args) for every part of the work.
template <class Args, class Launch>
void jac_parts(Args a, int64_t batch, int64_t chunks, const JacPlan& plan, const Launch& launch) {
  for (int64_t b = 0; b < batch; b += plan.problems)
    for (int64_t c = 0; c < chunks; c += plan.chunks) {
      a.jac.first_problem = b;
      a.jac.problems = std::min(plan.problems, batch - b);
      a.jac.first_chunk = c;
      a.jac.chunks = std::min(plan.chunks, chunks - c);
      launch(a);
    }
}

// `each` is how many sums there are of a row.
template <class in_t>
JacPlan jac_norms_plan(const JacArgs& a, int64_t batch, int64_t each = 1) {
  return jac_plan(batch, jac_chunks<in_t>(a.columns), each * a.classes * int64_t(sizeof(double)));
}

}  // namespace mvnrob::kernels
