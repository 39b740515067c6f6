// The host's part of mvn_cdf on a device: how memory is laid out and which kernels run in which
// order. Nothing here depends on what the device has done, so a call can be captured into a graph.
//
// Launcher gives: launch<Body>(blocks, shared_bytes, args); clear(pointer, bytes);
// most_shared<Body>(), the most shared memory that a body has use for and the device has for a
// block; resident_blocks<Body>(shared_bytes), how many blocks it holds at once; for a body whose
// blocks wait for each other launch_together and resident_together, which is 0 where the device
// cannot have that; repeats(), whether repeat(launches) can let the device itself repeat what
// launches(loop) launches for as long as set_loop(loop, true) is the last word (device.h); and
// watch(notice, ticket), which sets both for tell_host (told.h) and from then on leaves out the
// launches that it is asked for after it has seen that all is done. It sets null where the launches
// are captured, since what a replay tells is nobody's, or where it cannot look. follow(round),
// after that, waits until that round has begun, if the device is known to be at work and not for
// long.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/mvn_cdf_closed_form.h"
#include "kernels/mvn_cdf_grow.h"
#include "kernels/mvn_cdf_next_pass.h"
#include "kernels/mvn_cdf_plan.h"
#include "kernels/mvn_cdf_sample_blocked.h"
#include "kernels/mvn_cdf_sample_small.h"
#include "kernels/mvn_cdf_sample_tensor.h"
#include "kernels/mvn_cdf_sample_tensor_double.h"
#include "kernels/mvn_cdf_union.h"
#include "math/points.h"

namespace mvnrob::kernels {

// Enough chunks that one row alone fills a device; a function of n only, so that results do not
// depend on the batch.
inline int32_t max_chunks(int32_t n) { return n <= kMaxSmallPivots ? 16 : 64; }

template <class scalar_t>
RowLayout row_layout(const MvnCdfArgs& a) {
  const int32_t n = a.n;
  const int64_t rows = round_up(n, kMostOuterRows) + kMostOuterRows + kInnerRows;  // of a program
  RowLayout l{};
  l.max_chunks = max_chunks(n);
  Offsets o;
  l.state = o.take(sizeof(RowState));
  for (int64_t* p : {&l.variable, &l.group, &l.alike}) *p = o.take(4 * int64_t(n));
  for (int64_t* p : {&l.inverse_sd, &l.upper, &l.lower, &l.variance, &l.mean, &l.variance_error,
                     &l.scratch, &l.merged_upper, &l.merged_lower})
    *p = o.take(8 * int64_t(n));
  l.factor = o.take(8 * int64_t(n) * a.rank());
  l.program_rows = o.take(int64_t(sizeof(ProgramRow<scalar_t>)) * rows);
  for (int64_t* p : {&l.row_of, &l.pivot_of}) *p = o.take(4 * int64_t(n));
  l.blocks = o.take(int64_t(sizeof(ProgramBlock)) * (rows / kSmallRows));
  l.outer = o.take(int64_t(sizeof(OuterBlock)) * (rows / kOuterRows<scalar_t> + 1));
  l.coef = o.take(int64_t(sizeof(scalar_t)) * max_coefs(n, a.rank()));
  l.shifts = o.take(4 * int64_t(kShifts) * (n + 1));
  l.totals = o.take(int64_t(sizeof(SampleSums)) * kShifts);
  l.slots = o.take(int64_t(sizeof(SampleSums)) * kShifts * l.max_chunks);
  for (int64_t* p : {&l.event_mass, &l.event_share}) *p = o.take(16 * int64_t(n));
  if (sizeof(scalar_t) == 8) l.tilt = o.take((plan::kTiltArrays + 1) * 8 * int64_t(n));
  if (a.is_factor()) {
    l.directions = o.take(8 * int64_t(a.rank()) * a.factor_columns);
    l.reference = o.take(8 * int64_t(n));
    l.rest = o.take(8 * int64_t(n));
  }
  l.bytes = round_up(o.end(), 128);
  return l;
}

// Looks that a row may need: its points double from the pilot to max_points, and each deepening of
// the plan, like a screening that took too much, may start again; exact blocks beside samples take
// a round of their own. A row that is not done by then says max_points.
inline int32_t max_rounds(const MvnCdfArgs& a) {
  if (a.order) return 1;
  const auto doublings = [](double ratio) { return int32_t(std::ceil(std::log2(ratio))); };
  const double most = double(a.options.max_points) / (kShifts * plan::kPilot);
  int32_t rounds = 6 + doublings(std::max(most, 1.0));
  if (a.n > plan::kFullBelow) rounds += 2 * doublings(double(a.n) / plan::kFirstPivots);
  if (a.options.relative_to_p() > 0) rounds += 3;
  // Four variables of the rest at least, and one beside them.
  if (a.n > 4 && a.options.method == Method::automatic)
    rounds += a.options.relative_to_p() > 0 ? 2 : 1;
  return rounds;
}

// The counters of every round, and after them that of a graph's passes.
inline int64_t counter_bytes(const MvnCdfArgs& a) {
  return int64_t(sizeof(RoundCounters)) * (max_rounds(a) + 2) + int64_t(sizeof(int64_t));
}

// Whether a row may come to sample the union: two and three variables where their closed form may
// not have the digits (plan::closed).
inline bool may_unite(const MvnCdfArgs& a) {
  return (a.n > 3 || (a.n > 1 && !a.options.samples_float32())) &&
         a.options.method == Method::automatic && !a.order;
}

// Bytes that one block of a sampler keeps of its points.
template <class scalar_t>
int64_t blocked_history(int32_t n) {
  return int64_t(MvnCdfSampleBlocked<scalar_t>::history_bytes(n));
}
template <class scalar_t>
int64_t union_history(int32_t n) {
  return int64_t(MvnCdfSampleUnion<scalar_t>::history_bytes(n));
}

template <class scalar_t>
using MvnCdfTensor =
    std::conditional_t<sizeof(scalar_t) == 4, MvnCdfSampleTensor, MvnCdfSampleTensorDouble>;

template <class scalar_t>
int64_t tensor_history(const MvnCdfArgs& a) {
  return may_be_tensor<scalar_t>(a) ? int64_t(MvnCdfTensor<scalar_t>::history_bytes(a.rank())) : 0;
}

// Blocks of the samplers that keep a history, and of the grid that makes factors (0: none does).
struct Grids {
  int64_t blocked, tensor, united, grow;
};

template <class scalar_t, class Launcher>
int64_t grow_blocks(Launcher& launcher, const MvnCdfArgs& a) {
  using Grow = MvnCdfGrow<scalar_t>;
  return may_grow(a) ? launcher.template resident_together<Grow>(Grow::kSharedBytes) : 0;
}

// No more than can have work, or than memory serves: a GiB of what each sampler keeps, which share
// it.
template <class scalar_t, class Launcher>
Grids grids_of(Launcher& launcher, const MvnCdfArgs& a, int64_t rows) {
  using Blocked = MvnCdfSampleBlocked<scalar_t>;
  using Union = MvnCdfSampleUnion<scalar_t>;
  const int64_t streams = rows * kShifts * max_chunks(a.n);
  const auto blocks = [](int64_t resident, int64_t items, int64_t history, int64_t most) {
    const int64_t afford = most / std::max<int64_t>(history, 1);
    return std::max<int64_t>(1, std::min({resident, items, afford}));
  };
  Grids grids{0, 0, 0, grow_blocks<scalar_t>(launcher, a)};
  if (may_be_blocked<scalar_t>(a))
    grids.blocked =
        blocks(launcher.template resident_blocks<Blocked>(Blocked::kSharedBytes),
               streams / kStreamsPerBlock, blocked_history<scalar_t>(a.n), int64_t(1) << 30);
  using Tensor = MvnCdfTensor<scalar_t>;
  if (may_be_tensor<scalar_t>(a))
    grids.tensor =
        blocks(launcher.template resident_blocks<Tensor>(Tensor::kSharedBytes),
               tensor_items<scalar_t>(streams), tensor_history<scalar_t>(a), int64_t(1) << 30);
  if (may_unite(a))
    grids.united = blocks(launcher.template resident_blocks<Union>(0), streams / Union::kWarps,
                          union_history<scalar_t>(a.n), int64_t(1) << 30);
  return grids;
}

// A piece of device memory for one tile of rows.
template <class scalar_t>
struct Workspace {
  int64_t counters, generators, active[2], closed, factored, grown, grow_slots, small, blocked,
      tensor, united, history, memory, bytes;
  bool grows;

  Workspace(const MvnCdfArgs& a, int64_t rows, const Grids& grids) {
    Offsets o;
    constexpr int64_t kAlignment = 256;
    counters = o.take(counter_bytes(a), kAlignment);
    generators = o.take(4 * (int64_t(a.n) + 1) * math::words_of(a.options.points), kAlignment);
    for (int64_t& p : active) p = o.take(8 * rows, kAlignment);
    closed = o.take(8 * rows, kAlignment);
    factored = o.take(8 * rows, kAlignment);
    grows = grids.grow > 0;
    grown = o.take(grows ? 8 * rows : 0, kAlignment);
    grow_slots = o.take(MvnCdfGrow<scalar_t>::Team::slot_bytes(grids.grow), kAlignment);
    small = o.take(int64_t(sizeof(WorkEntry)) * rows, kAlignment);
    blocked = o.take(int64_t(sizeof(WorkEntry)) * rows, kAlignment);
    tensor = o.take(int64_t(sizeof(WorkEntry)) * rows, kAlignment);
    united = o.take(int64_t(sizeof(WorkEntry)) * rows, kAlignment);
    history = o.take(std::max({grids.blocked * blocked_history<scalar_t>(a.n),
                               grids.tensor * tensor_history<scalar_t>(a),
                               grids.united * union_history<scalar_t>(a.n)}),
                     kAlignment);
    memory = o.take(rows * row_layout<scalar_t>(a).bytes, kAlignment);
    bytes = o.end();
  }

  void place(MvnCdfArgs& a, unsigned char* base) const {
    a.layout = row_layout<scalar_t>(a);
    a.counters = reinterpret_cast<RoundCounters*>(base + counters);
    a.generators = reinterpret_cast<uint32_t*>(base + generators);
    for (int i = 0; i < 2; ++i) a.active[i] = reinterpret_cast<int64_t*>(base + active[i]);
    a.closed = reinterpret_cast<int64_t*>(base + closed);
    a.factored = reinterpret_cast<int64_t*>(base + factored);
    a.grown = grows ? reinterpret_cast<int64_t*>(base + grown) : nullptr;
    a.grow_slots = base + grow_slots;
    a.small = reinterpret_cast<WorkEntry*>(base + small);
    a.blocked = reinterpret_cast<WorkEntry*>(base + blocked);
    a.tensor = reinterpret_cast<WorkEntry*>(base + tensor);
    a.united = reinterpret_cast<WorkEntry*>(base + united);
    a.history = base + history;
    a.blocked_history = blocked_history<scalar_t>(a.n);
    a.tensor_history = tensor_history<scalar_t>(a);
    a.union_history = union_history<scalar_t>(a.n);
    a.memory = base + memory;
  }
};

// How many rounds the host launches before it follows the device: enough to keep that busy, and few
// enough that it soon passes those that no row needs, some 15 us each.
constexpr int32_t kRoundsAhead = 2;

// What the planning kernel leaves to the whole grid.
template <class scalar_t, class Launcher>
void launch_grow(Launcher& launcher, const MvnCdfArgs& a, const Grids& grids) {
  using Grow = MvnCdfGrow<scalar_t>;
  if (grids.grow > 0)
    launcher.template launch_together<Grow>(unsigned(grids.grow), Grow::kSharedBytes, a);
}

template <class scalar_t, int plan_threads, class Launcher>
void run_rounds(Launcher& launcher, MvnCdfArgs a, const Grids& grids) {
  using Plan = MvnCdfPlan<scalar_t, plan_threads>;
  using ClosedForm = MvnCdfClosedForm<scalar_t>;
  using OneFactor = MvnCdfOneFactor<scalar_t>;
  using Small = MvnCdfSampleSmall<scalar_t>;
  using Blocked = MvnCdfSampleBlocked<scalar_t>;
  using Tensor = MvnCdfTensor<scalar_t>;
  using Union = MvnCdfSampleUnion<scalar_t>;
  const auto blocks = [&](int64_t wanted, int64_t resident) {
    return unsigned(std::max<int64_t>(1, std::min(wanted, resident)));
  };
  const size_t small_bytes = Small::shared_bytes(a.n);
  const size_t plan_bytes = launcher.template most_shared<Plan>();
  if (a.factor_shared == 0) a.factor_shared = int32_t(plan_bytes);
  const unsigned plan_blocks = blocks(a.rows, launcher.template resident_blocks<Plan>(plan_bytes));
  const unsigned closed_blocks = blocks((a.rows + ClosedForm::kThreads - 1) / ClosedForm::kThreads,
                                        launcher.template resident_blocks<ClosedForm>(0));
  const unsigned factored_blocks =
      blocks(a.rows, launcher.template resident_blocks<OneFactor>(OneFactor::kSharedBytes));
  const unsigned small_blocks = blocks(a.rows * kShifts * max_chunks(a.n) / Small::kWarps,
                                       launcher.template resident_blocks<Small>(small_bytes));
  const auto advance = [&](int32_t round, unsigned more = 0) {
    a.launch_round = round;
    launcher.template launch<Plan>(plan_blocks + more, plan_bytes, a);
    launch_grow<scalar_t>(launcher, a, grids);
  };
  // `screens`: whether rows may have been screened in this round, where they meet closed forms.
  const auto integrate = [&](int32_t round, bool screens) {
    a.launch_round = round;
    launcher.template launch<Small>(small_blocks, small_bytes, a);  // first: it tells the host
    if (screens && a.options.method != Method::sov && !a.order) {
      if (a.n > 3)
        launcher.template launch<OneFactor>(factored_blocks, OneFactor::kSharedBytes, a);
      else
        launcher.template launch<ClosedForm>(closed_blocks, 0, a);
    }
    if (may_be_blocked<scalar_t>(a))
      launcher.template launch<Blocked>(unsigned(grids.blocked), Blocked::kSharedBytes, a);
    if (may_be_tensor<scalar_t>(a))
      launcher.template launch<Tensor>(unsigned(grids.tensor), Tensor::kSharedBytes, a);
    if (may_unite(a)) launcher.template launch<Union>(unsigned(grids.united), 0, a);
  };
  a.last_round = max_rounds(a);
  launcher.clear(a.counters, size_t(counter_bytes(a)));
  const bool repeats = a.last_round > 1 && launcher.repeats();
  if (a.last_round > 1 && !repeats) launcher.watch(a.notice, a.ticket);
  advance(0, 1);  // with a block more, which fills the generators
  if (repeats) {
    launcher.repeat([&](uint64_t loop) {
      a.passes = reinterpret_cast<int32_t*>(a.counters + a.last_round + 2);
      integrate(0, true);
      a.loop = loop;
      advance(1);
      if (!Plan::kEndsPass) launcher.template launch<MvnCdfNextPass>(1, 0, a);
    });
    return;
  }
  for (int32_t round = 0; round < a.last_round; ++round) {
    // Rows are screened at first, or judged again, which deepening may find out later, or screened
    // again.
    if (round >= kRoundsAhead) launcher.follow(round - kRoundsAhead);
    integrate(round, round < 2 || a.options.relative_to_p() > 0 || a.n > plan::kFullBelow);
    advance(round + 1);
  }
}

// One tile: `a` with input, output and options set, memory of Workspace(a, a.rows, ...).bytes.
template <class scalar_t, class Launcher>
void run_tile(Launcher& launcher, MvnCdfArgs a, const Grids& grids, unsigned char* memory) {
  Workspace<scalar_t>(a, a.rows, grids).place(a, memory);
  a.quantiles = plan::quantiles();
  if (a.n <= 32)
    run_rounds<scalar_t, 32>(launcher, a, grids);
  else if (a.n <= 256)
    run_rounds<scalar_t, 128>(launcher, a, grids);
  else
    run_rounds<scalar_t, kGrowThreads>(launcher, a, grids);
}

}  // namespace mvnrob::kernels
