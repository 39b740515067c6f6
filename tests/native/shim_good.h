// Small bodies that use everything the shim offers, each with a check against plain loops. A check
// throws std::runtime_error("wrong ...") when an answer is wrong.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/grid.h"

namespace shim_tests {

using namespace mvnrob::kernels;
namespace shim = mvnrob::shim;

// The thread counts round a warp's and a block's edges.
constexpr unsigned kSizes[] = {1, 31, 32, 33, 64, 100, 128, 512};

// Calls f with threads as a compile-time constant.
template <class F>
void with_threads(unsigned threads, const F& f) {
  switch (threads) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 31:
      return f(std::integral_constant<int, 31>());
    case 32:
      return f(std::integral_constant<int, 32>());
    case 33:
      return f(std::integral_constant<int, 33>());
    case 64:
      return f(std::integral_constant<int, 64>());
    case 100:
      return f(std::integral_constant<int, 100>());
    case 128:
      return f(std::integral_constant<int, 128>());
    case 512:
      return f(std::integral_constant<int, 512>());
  }
  throw std::invalid_argument("threads must be one of kSizes, got " + std::to_string(threads));
}

inline void expect(bool right, const char* what, size_t at) {
  if (!right) throw std::runtime_error(std::string("wrong ") + what + " at " + std::to_string(at));
}

// Deliberate bugs of the bodies below, as a kernel argument; shim_bad.h asks for them.
enum class Bug { kNone, kNoBarrier, kNoBarrierBeforeCopy, kNoWait };

// out[block] = sum of the block's T values: shuffles within a warp, shared memory between warps.
template <int T>
struct BlockSum {
  struct Args {
    const double* in;
    double* out;
    Bug bug;
  };
  static constexpr int kThreads = T;
  static constexpr unsigned kWarps = (T + 31) / 32;

  MVNROB_DEVICE_FN static void run(const Args& args) {
    double* partial = dynamic_shared<double>();
    const unsigned thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const unsigned lanes = blockDim.x - warp * 32 < 32 ? blockDim.x - warp * 32 : 32;
    double x = args.in[size_t(blockIdx.x) * blockDim.x + thread];
    for (unsigned offset = 16; offset > 0; offset /= 2) {
      const double other = __shfl_down_sync(kFullWarp, x, offset);
      if (lane + offset < lanes) x += other;
    }
    if (lane == 0) partial[warp] = x;
    if (args.bug != Bug::kNoBarrier) __syncthreads();
    if (thread == 0) {
      double sum = 0;
      for (unsigned w = 0; w < kWarps; ++w) sum += partial[w];
      args.out[blockIdx.x] = sum;
    }
  }
};

inline void check_block_sum(unsigned threads, unsigned blocks, Bug bug = Bug::kNone) {
  std::vector<double> in(size_t(threads) * blocks), out(blocks);
  for (size_t i = 0; i < in.size(); ++i) in[i] = double(i * 37 % 101);
  with_threads(threads, [&](auto t) {
    using Body = BlockSum<decltype(t)::value>;
    shim::Launcher launcher;
    launcher.launch<Body>(blocks, Body::kWarps * sizeof(double), {in.data(), out.data(), bug});
  });
  for (size_t b = 0; b < blocks; ++b) {
    double sum = 0;
    for (size_t i = 0; i < threads; ++i) sum += in[b * threads + i];
    expect(out[b] == sum, "sum", b);
  }
}

constexpr int kTiles = 3;  // of one block of Transpose

// Tiles of T rows of four floats, written by columns and from the last row to the first. The next
// tile is copied while this one is read, one of them in halves.
template <int T>
struct Transpose {
  struct Args {
    const float* in;
    float* out;
    Bug bug;
  };
  static constexpr int kThreads = T;

  MVNROB_DEVICE_FN static void start(const Args& args, int tile) {
    const size_t row = (size_t(blockIdx.x) * kTiles + tile) * T + threadIdx.x;
    float* const to = dynamic_shared<float>() + (tile % 2 * T + int(threadIdx.x)) * 4;
    const float* const from = args.in + row * 4;
    if (tile == 1) {
      copy_async8(to, from);
      copy_async8(to + 2, from + 2);
    } else {
      copy_async16(to, from);
    }
    copy_async_commit();
  }

  MVNROB_DEVICE_FN static void run(const Args& args) {
    start(args, 0);
    for (int tile = 0; tile < kTiles; ++tile) {
      if (tile + 1 < kTiles) start(args, tile + 1);
      if (args.bug != Bug::kNoWait) {
        if (tile + 1 < kTiles) {
          copy_async_wait<1>();
        } else {
          copy_async_wait<0>();
        }
      }
      if (args.bug != Bug::kNoBarrier) __syncthreads();
      const float* rows = dynamic_shared<float>() + tile % 2 * T * 4;
      for (int c = 0; c < 4; ++c) {
        const size_t column = (size_t(blockIdx.x) * kTiles + tile) * 4 + c;
        args.out[column * T + threadIdx.x] = rows[(T - 1 - int(threadIdx.x)) * 4 + c];
      }
      if (args.bug != Bug::kNoBarrierBeforeCopy) __syncthreads();
    }
  }
};

inline void check_transpose(unsigned threads, unsigned blocks, Bug bug = Bug::kNone) {
  const size_t rows = threads, tiles = size_t(blocks) * kTiles;
  std::vector<float> in(tiles * rows * 4), out(in.size());  // malloc aligns to 16
  for (size_t i = 0; i < in.size(); ++i) in[i] = float(i);
  with_threads(threads, [&](auto t) {
    shim::launch<Transpose<decltype(t)::value>>(blocks, 2 * rows * 4 * sizeof(float),
                                                {in.data(), out.data(), bug});
  });
  for (size_t i = 0; i < out.size(); ++i) {
    const size_t tile = i / (4 * rows), c = i / rows % 4, row = rows - 1 - i % rows;
    expect(out[i] == in[(tile * rows + row) * 4 + c], "element", i);
  }
}

// before[i] = how many flags of the block are set before i; votes[i] packs the votes.
template <int T>
struct Scan {
  struct Args {
    const int* flags;
    unsigned* before;
    int* votes;
  };
  static constexpr int kThreads = T;
  static constexpr unsigned kWarps = (T + 31) / 32;

  MVNROB_DEVICE_FN static void run(const Args& args) {
    unsigned* totals = dynamic_shared<unsigned>();
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int flag = args.flags[i];
    const unsigned ballot = __ballot_sync(kFullWarp, flag);
    if (lane == 0) totals[warp] = unsigned(__popc(ballot));
    const int any = __any_sync(kFullWarp, flag), all = __all_sync(kFullWarp, flag);
    const int block_any = __syncthreads_or(flag);
    const int block_all = !__syncthreads_or(!flag);
    unsigned before = unsigned(__popcll(ballot & ((1ull << lane) - 1)));
    for (unsigned w = 0; w < warp; ++w) before += totals[w];
    args.before[i] = before;
    args.votes[i] = any | all << 1 | block_any << 2 | block_all << 3 | __ffs(int(ballot)) << 4;
  }
};

inline void check_scan(unsigned threads, unsigned blocks) {
  std::vector<int> flags(size_t(threads) * blocks), votes(flags.size());
  std::vector<unsigned> before(flags.size());
  for (unsigned pattern = 0; pattern < 4; ++pattern) {  // none, all, every third, a half
    for (size_t i = 0; i < flags.size(); ++i) {
      flags[i] = pattern == 1 || (pattern == 2 && i % 3 == 0) ||
                 (pattern == 3 && i % threads * 2 >= threads);
    }
    with_threads(threads, [&](auto t) {
      using Body = Scan<decltype(t)::value>;
      shim::launch<Body>(blocks, Body::kWarps * sizeof(unsigned),
                         {flags.data(), before.data(), votes.data()});
    });
    for (size_t i = 0; i < flags.size(); ++i) {
      const size_t block = i / threads * threads, warp = block + i % threads / 32 * 32;
      const size_t block_end = block + threads, warp_end = std::min(warp + 32, block_end);
      unsigned count = 0, block_sum = 0, warp_sum = 0, first = 0;
      for (size_t j = block; j < block_end; ++j) {
        count += j < i && flags[j];
        block_sum += unsigned(flags[j]);
        if (j < warp || j >= warp_end || !flags[j]) continue;
        ++warp_sum;
        if (first == 0) first = unsigned(j - warp + 1);
      }
      expect(before[i] == count, "count", i);
      const int expected = (warp_sum > 0) | (warp_sum == warp_end - warp) << 1 |
                           (block_sum > 0) << 2 | (block_sum == threads) << 3 | int(first) << 4;
      expect(votes[i] == expected, "votes", i);
    }
  }
}

struct Tally {
  unsigned long long sum;
  unsigned bits, largest, smallest;
};

// Counts by value in shared memory, then sums, bits and extremes in global memory.
template <int T>
struct Atomics {
  struct Args {
    const unsigned* in;
    unsigned* counts;
    Tally* tally;
  };
  static constexpr int kThreads = T;

  MVNROB_DEVICE_FN static void run(const Args& args) {
    unsigned* counts = dynamic_shared<unsigned>();
    for (unsigned i = threadIdx.x; i < 16; i += blockDim.x) counts[i] = 0;
    __syncthreads();
    const unsigned x = args.in[size_t(blockIdx.x) * blockDim.x + threadIdx.x];
    atomicAdd(&counts[x % 16], 1u);
    atomicAdd(&args.tally->sum, (unsigned long long)x);
    atomicOr(&args.tally->bits, 1u << x % 32);
    atomicMax(&args.tally->largest, x);
    atomicMin(&args.tally->smallest, x);
    __syncthreads();
    for (unsigned i = threadIdx.x; i < 16; i += blockDim.x) atomicAdd(&args.counts[i], counts[i]);
  }
};

inline void check_atomics(unsigned threads, unsigned blocks) {
  std::vector<unsigned> in(size_t(threads) * blocks), counts(16), expected(16);
  Tally tally{0, 0, 0, ~0u}, right = tally;
  for (size_t i = 0; i < in.size(); ++i) {
    in[i] = unsigned(i * 2654435761u);
    ++expected[in[i] % 16];
    right.sum += in[i];
    right.bits |= 1u << in[i] % 32;
    right.largest = std::max(right.largest, in[i]);
    right.smallest = std::min(right.smallest, in[i]);
  }
  with_threads(threads, [&](auto t) {
    shim::launch<Atomics<decltype(t)::value>>(blocks, 16 * sizeof(unsigned),
                                              {in.data(), counts.data(), &tally});
  });
  for (size_t i = 0; i < 16; ++i) expect(counts[i] == expected[i], "count", i);
  expect(tally.sum == right.sum && tally.bits == right.bits, "sum or bits", 0);
  expect(tally.largest == right.largest && tally.smallest == right.smallest, "extreme", 0);
}

template <class S>
MVNROB_DEVICE S shuffled(unsigned thread) {
  return S(thread) * S(3) + S(1);
}

// Four shuffles of shuffled<S>(thread).
template <int T, class S>
struct Shuffles {
  struct Args {
    S* out;
  };
  static constexpr int kThreads = T;

  MVNROB_DEVICE_FN static void run(const Args& args) {
    const unsigned thread = threadIdx.x;
    const S x = shuffled<S>(thread);
    S* out = args.out + (size_t(blockIdx.x) * blockDim.x + thread) * 4;
    out[0] = __shfl_sync(kFullWarp, x, int(thread * 7 + 3));
    out[1] = __shfl_down_sync(kFullWarp, x, 3u, 8);
    out[2] = __shfl_xor_sync(kFullWarp, x, 21);
    out[3] = __shfl_xor_sync(kFullWarp, x, 12, 8);
    __syncwarp();
  }
};

template <class S>
void check_shuffles_of(unsigned threads, unsigned blocks) {
  std::vector<S> out(size_t(threads) * blocks * 4);
  with_threads(threads, [&](auto t) {
    shim::launch<Shuffles<decltype(t)::value, S>>(blocks, 0, {out.data()});
  });
  for (size_t i = 0; i < out.size(); ++i) {
    const unsigned thread = unsigned(i / 4 % threads), lane = thread % 32;
    const unsigned xor12 = lane ^ 12;
    const unsigned sources[4] = {(thread * 7 + 3) % 32, lane % 8 + 3 < 8 ? lane + 3 : lane,
                                 lane ^ 21, xor12 / 8 <= lane / 8 ? xor12 : lane};
    const unsigned source = thread - lane + sources[i % 4];
    S right;
    std::memset(&right, 0xFF, sizeof right);  // a lane that is not there
    if (source < threads) right = shuffled<S>(source);
    expect(std::memcmp(&out[i], &right, sizeof right) == 0, "shuffle", i);
  }
}

inline void check_shuffles(unsigned threads, unsigned blocks) {
  check_shuffles_of<int>(threads, blocks);
  check_shuffles_of<unsigned>(threads, blocks);
  check_shuffles_of<long long>(threads, blocks);
  check_shuffles_of<unsigned long long>(threads, blocks);
  check_shuffles_of<float>(threads, blocks);
  check_shuffles_of<double>(threads, blocks);
}

// Blocks at work together: each thread reads what its neighbour's block has written.
template <int T>
struct Neighbours {
  struct Args {
    double *x, *out;
    Bug bug;
  };
  static constexpr int kThreads = T;

  MVNROB_DEVICE_FN static void run(const Args& args) {
    const unsigned next = (blockIdx.x + 1) % gridDim.x;
    for (int turn = 1; turn <= 3; ++turn) {
      args.x[blockIdx.x * T + threadIdx.x] = turn * (blockIdx.x + 1.0);
      if (args.bug != Bug::kNoBarrier) shim::grid_sync();
      args.out[blockIdx.x * T + threadIdx.x] = args.x[next * T + T - 1 - threadIdx.x];
      shim::grid_sync();
    }
  }
};

inline void check_neighbours(unsigned threads, unsigned blocks, Bug bug = Bug::kNone) {
  if (threads * blocks > 4096) return;  // a stack for each of them
  with_threads(threads, [&](auto t) {
    std::vector<double> x(size_t(threads) * blocks), out(x.size());
    shim::launch_together<Neighbours<t()>>(blocks, 0, {x.data(), out.data(), bug});
    for (size_t i = 0; i < out.size(); ++i)
      expect(out[i] == 3.0 * double((i / threads + 1) % blocks + 1), "neighbour", i);
  });
}

// Every operation of a block or a grid as a team; each thread gives the answers that it got.
template <int T, bool is_grid>
struct TeamOperations {
  struct Args {
    void* slots;
    const double* key;
    double* out;  // [threads][7], by blockIdx and threadIdx
  };
  static constexpr int kThreads = T;

  template <class Team>
  MVNROB_DEVICE_FN static void run_team(const Args& args, const Team& team) {
    const int t = team.thread();
    double* out = args.out + 7 * (size_t(blockIdx.x) * T + threadIdx.x);
    const double key = args.key[t];
    out[0] = team.first(Placed{{key, 4096 - t}, t}).place;
    out[1] = team.min(key);
    out[2] = team.max(key);
    out[3] = team.sum(t);
    out[4] = team.any_bits(1u << t % 30);
    int total = 0;
    out[5] = team.rank(key < 50, total);
    out[6] = total;
  }

  MVNROB_DEVICE_FN static void run(const Args& args) {
    const Block<T> block(*dynamic_shared<typename Block<T>::Shared>());
    if constexpr (is_grid)
      run_team(args, Grid<T>(block, args.slots));
    else
      run_team(args, block);
  }
};

template <int T, bool is_grid>
void check_team_of(unsigned blocks) {
  using Body = TeamOperations<T, is_grid>;
  const int team = is_grid ? int(T * blocks) : T;
  std::vector<double> key(team), out(7 * size_t(T) * blocks), slots(Grid<T>::slot_bytes(blocks));
  for (int t = 0; t < team; ++t) key[t] = (t * 37 + 11) % 101;
  const auto launch = is_grid ? shim::launch_together<Body> : shim::launch<Body>;
  launch(blocks, sizeof(typename Block<T>::Shared), {slots.data(), key.data(), out.data()});
  double before = 0, bits = 0, last = 0, total = 0;
  int first = 0;
  for (int t = 0; t < team; ++t) {
    if (goes_before({key[t], 4096 - t}, {key[first], 4096 - first})) first = t;
    last = std::max(last, key[t]);
    total += key[t] < 50;
  }
  for (int t = 0; t < std::min(team, 30); ++t) bits += double(1u << t);
  for (int t = 0; t < team; ++t) {
    // A grid counts its warps from block to block.
    const int warps = is_grid ? int(blocks) : 1, warp = t / kWarp;
    const int place = is_grid ? warp % warps * T + warp / warps * kWarp + t % kWarp : t;
    const double answer[7] = {double(first), key[first], last, 0.5 * team * (team - 1.0),
                              bits,          before,     total};
    for (unsigned copy = 0; copy < (is_grid ? 1 : blocks); ++copy)
      for (int k = 0; k < 7; ++k)
        expect(out[7 * (size_t(copy) * T + place) + k] == answer[k], "answer of a team", k);
    before += key[t] < 50;
  }
}

inline void check_teams(unsigned threads, unsigned blocks) {
  if (threads % kWarp != 0 || threads * blocks > 4096) return;
  with_threads(threads, [&](auto t) {
    if constexpr (t() % kWarp == 0) {
      check_team_of<t(), false>(blocks);
      check_team_of<t(), true>(blocks);
    }
  });
}

struct Good {
  const char* name;
  void (*check)(unsigned threads, unsigned blocks);
};

inline const Good kGood[] = {
    {"block_sum", [](unsigned threads, unsigned blocks) { check_block_sum(threads, blocks); }},
    {"transpose", [](unsigned threads, unsigned blocks) { check_transpose(threads, blocks); }},
    {"scan", check_scan},
    {"atomics", check_atomics},
    {"shuffles", check_shuffles},
    {"neighbours", [](unsigned threads, unsigned blocks) { check_neighbours(threads, blocks); }},
    {"teams", check_teams},
};

}  // namespace shim_tests
