// How work reaches the samplers of mvn_cdf: from lists that the plans of rows are entered into, by
// counters that run on until all is taken.
#pragma once
#include "kernels/mvn_cdf_data.h"
#include "kernels/told.h"

namespace mvnrob::kernels {

// Tiles of one shift that a stream walks through.
struct Stream {
  int shift, chunk;
  int64_t first;  // point
  int tiles;

  MVNROB_DEVICE Stream(const Program& p, int64_t index)
      : shift(int(index / p.chunks)), chunk(int(index % p.chunks)) {
    const int tile = chunk * p.chunk_tiles;
    first = p.first + int64_t(tile) * kTileSamples;
    tiles = p.tiles - tile < p.chunk_tiles ? p.tiles - tile : p.chunk_tiles;
  }
};

// One thread of the first kernel: tells the host, where it looks, that the device is at work.
MVNROB_DEVICE void tell_begun(const MvnCdfArgs& a) {
  if (a.notice) tell_host(a.notice, a.ticket + kBegun);
}

// One thread, of a kernel that comes after a round's planning: tells how many rounds have begun, or
// that all rows are done. No row is then in a list of this round either (RowPlanner::leave), so
// whatever may be launched from here on has nothing to do.
MVNROB_DEVICE void tell_round(const MvnCdfArgs& a) {
  if (!a.notice) return;
  const int32_t next = a.round() + 1;
  tell_host(a.notice, a.ticket + (a.counters[next].active == 0 ? kAllDone : uint64_t(next)));
}

// The entry that an item belongs to: the last one whose base is not beyond it.
MVNROB_DEVICE_FN int64_t find_entry(const WorkEntry* entries, int64_t count, uint64_t item) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (entries[middle].base <= item)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// Streams handed out to warps: sample(row, index of the stream in the row) for each of this warp's.
template <class Sample>
MVNROB_DEVICE_FN void for_each_stream(const MvnCdfArgs& a,
                                      unsigned long long RoundCounters::*packed,
                                      unsigned long long RoundCounters::*next,
                                      const WorkEntry* list, int warps, const Sample& sample) {
  const auto counters = [&]() -> RoundCounters& { return a.counters[a.round()]; };
  const uint64_t all = counters().*packed;
  constexpr uint64_t kMostAtOnce = 8;
  const uint64_t items = items_of(all);
  if (items == 0) return;  // most launches: before the counter of items is asked
  const int64_t entries = entries_of(all);
  // Long runs save searches, short ones balance the load.
  const uint64_t share = items / (uint64_t(gridDim.x) * warps * 4);
  const uint64_t run = share < 1 ? 1 : share < kMostAtOnce ? share : kMostAtOnce;
  for (;;) {
    unsigned long long taken = 0;
    if (threadIdx.x % kWarp == 0)
      taken = atomicAdd(&(counters().*next), static_cast<unsigned long long>(run));
    uint64_t item = __shfl_sync(kFullWarp, taken, 0);
    if (item >= items) return;
    const uint64_t end = item + run < items ? item + run : items;
    int64_t entry = find_entry(list, entries, item);
    for (; item < end; ++item) {
      while (entry + 1 < entries && list[entry + 1].base <= item) ++entry;
      sample(list[entry].row, int64_t(item - list[entry].base));
    }
  }
}

// What a block of threads works on, in its shared memory.
struct BlockWork {
  Program program;
  unsigned long long item;
  int64_t row;
  bool tilted;
};

// Items, a few streams of one row each, handed out to blocks: sample(row, index of the item in the
// row) for each of this block's, which is in `work` then. The round's counters are found anew for
// each of them: the samplers want the registers.
template <class Sample>
MVNROB_DEVICE_FN void for_each_item(const MvnCdfArgs& a, unsigned long long RoundCounters::*packed,
                                    unsigned long long RoundCounters::*next, const WorkEntry* list,
                                    BlockWork& work, const Sample& sample) {
  const auto counters = [&]() -> RoundCounters& { return a.counters[a.round()]; };
  // Of few items, or none as in most launches, each block has one at most and need not ask for it.
  const auto few = [&] { return items_of(counters().*packed) <= gridDim.x; };
  do {
    uint64_t item = blockIdx.x;
    if (!few()) {
      if (threadIdx.x == 0) work.item = atomicAdd(&(counters().*next), 1ull);
      __syncthreads();
      item = work.item;
      __syncthreads();
    }
    const uint64_t all = counters().*packed;
    if (item >= items_of(all)) return;
    const WorkEntry entry = list[find_entry(list, entries_of(all), item)];
    if (threadIdx.x == 0) {
      const RowState& state = *a.at<RowState>(entry.row, a.layout.state);
      work.program = state.program;
      work.row = entry.row;
      work.tilted = state.plan.tilted;
    }
    __syncthreads();
    sample(entry.row, int64_t(item - entry.base));
  } while (!few());
}

}  // namespace mvnrob::kernels
