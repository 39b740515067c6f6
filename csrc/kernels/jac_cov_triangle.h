// jac_cov for 11 to 104 classes: all pairs of one problem at once.
//
// Mapping: a block of 96 threads takes one chunk of columns of one problem. The rows are cut into n
// blocks of eight, and a thread multiplies one of the n (n + 1) / 2 pairs of blocks, 8 x 8 sums in
// its registers; where there are fewer pairs than threads, several threads share a pair and take
// every so-manieth column. float32 moves its sums to shared memory every 128 columns: two short
// sums round less than a long one. At the end the threads of a pair meet there, in a fixed order,
// and the chunk's sums go to `sums`, for JacCovSum. Differences are staged as in jac_cov_stage.h.
#pragma once
#include "kernels/jac_cov_stage.h"

namespace mvnrob::kernels {

template <class in_t>
struct JacCovTriangle {
  using Args = JacCovArgs;
  using T = JacCompute<in_t>;
  static constexpr int kMostClasses = 104;
  static constexpr int kThreads = 96;
  static constexpr int kResidentBlocks = 2;

 private:
  using Stage = JacStage<in_t, kThreads, 1, kMostClasses>;
  using Block = JacBlock<T>;
  static constexpr int kMostBlocks = kMostClasses / 8;
  static_assert(kMostBlocks * (kMostBlocks + 1) / 2 <= kThreads);
  static constexpr int kStages = sizeof(T) == 4 ? 128 / Stage::kColumns : 1 << 20;  // of one sum

  struct Shared {
    typename Stage::Shared stage;
    T total[64][kThreads];
  };

 public:
  static constexpr size_t kSharedBytes = sizeof(Shared);

  static MVNROB_DEVICE_FN void run(const Args& a) {
    Shared& shared = *dynamic_shared<Shared>();
    const int64_t units = a.jac.problems * a.jac.chunks;
    for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
      JacCovTriangle(a, unit).work(shared);
      __syncthreads();
    }
  }

 private:
  MVNROB_DEVICE JacCovTriangle(const Args& a, int64_t unit)
      : a_(a),
        classes_(int(a.jac.classes)),
        problem_(a.jac.first_problem + unit / a.jac.chunks),
        first_((a.jac.first_chunk + unit % a.jac.chunks) * kJacChunk<in_t>),
        out_(static_cast<T*>(a.sums) + unit * classes_ * classes_) {
    const int64_t end = first_ + kJacChunk<in_t>;
    end_ = end < a.jac.columns ? end : a.jac.columns;
    blocks_ = (classes_ + 7) / 8;
    pairs_ = blocks_ * (blocks_ + 1) / 2;
    slices_ = kThreads / pairs_;
    slice_ = int(threadIdx.x) / pairs_;
    place(int(threadIdx.x) % pairs_, p_, q_);
  }

  static MVNROB_DEVICE void place(int pair, int& p, int& q) {
    q = 0;
    while ((q + 1) * (q + 2) / 2 <= pair) ++q;
    p = pair - q * (q + 1) / 2;
  }

  MVNROB_DEVICE void work(Shared& shared) {
    const int64_t first = 0;
    const JacProblem<in_t> problem(a_.jac, problem_);
    Stage stage(a_.jac, problem, &first, 1, 8 * blocks_);
    Block block;
    block.clear();
    stage.load(first_, end_);
    int buffer = 0, stages = 0;
    bool added = false;
    const int part = blocks_ * Block::kVec;
    for (int64_t at = first_; at < end_; at += Stage::kColumns) {
      stage.store(shared.stage, buffer);
      __syncthreads();
      const bool last = at + Stage::kColumns >= end_;
      if (!last) stage.load(at + Stage::kColumns, end_);
      const auto& u = shared.stage.u[buffer];
      if (slice_ < slices_) {
        MVNROB_ROLLED
        for (int k = slice_; k < Stage::kColumns; k += slices_)
          block.multiply(&u[k][p_ * Block::kVec], &u[k][q_ * Block::kVec], part);
      }
      buffer ^= 1;
      if (++stages % kStages == 0 || last) {
        collect(shared, block, added);
        added = true;
      }
    }
    __syncthreads();
    meet(shared);
  }

  // A thread's sums to its own place.
  MVNROB_DEVICE void collect(Shared& shared, Block& block, bool add) const {
    MVNROB_UNROLL
    for (int r = 0; r < 8; ++r) {
      MVNROB_UNROLL
      for (int c = 0; c < 8; ++c) {
        T& total = shared.total[r * 8 + c][threadIdx.x];
        total = add ? total + block.sum[r][c] : block.sum[r][c];
      }
    }
    block.clear();
  }

  // Adds the sums of the threads of a pair.
  MVNROB_DEVICE void meet(const Shared& shared) const {
    for (int e = int(threadIdx.x); e < 64 * pairs_; e += kThreads) {
      const int pair = e % pairs_, entry = e / pairs_;
      T sum = 0;
      for (int s = 0; s < slices_; ++s) sum += shared.total[entry][s * pairs_ + pair];
      int p, q;
      place(pair, p, q);
      const int i = Block::row(p, entry / 8, blocks_), j = Block::row(q, entry % 8, blocks_);
      const int low = i < j ? i : j, high = i < j ? j : i;
      if (high < classes_ && (p != q || i <= j)) out_[low * classes_ + high] = sum;
    }
  }

  const Args& a_;
  int classes_;
  int64_t problem_, first_, end_;
  T* out_;
  int blocks_, pairs_, slices_, slice_, p_, q_;
};

}  // namespace mvnrob::kernels
