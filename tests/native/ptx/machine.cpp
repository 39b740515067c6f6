// What threads of translated PTX do together, on the shim's scheduler: barriers, exchanges, tensor
// cores. Fragments are numbered as in the PTX ISA's figures, without the shim's own
// (shim/tensor.h).
#include "machine.h"

#include <cxxabi.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "shim/cuda.h"

namespace mvnrob::ptx {

namespace {

shim::Scheduler& running() { return *shim::Scheduler::running(); }

// As the last argument of what the shim asks a caller for.
shim::Site site(const char* name, const char* file, int line, bool orders_memory) {
  return {name, file, line, orders_memory};
}

// All lanes of a warp give words, and read those of others.
template <class T, size_t n>
class Words {
 public:
  Words(const T (&own)[n], const char* name, const char* file, int line) {
    for (size_t i = 0; i < n; ++i) {
      uint64_t word = 0;
      std::memcpy(&word, &own[i], sizeof(T));
      const shim::Exchange exchange(~0u, word, name, shim::Caller(file, line));
      for (unsigned lane = 0; lane < shim::kWarp; ++lane) {
        word = exchange.from(lane);
        std::memcpy(&words_[lane][i], &word, sizeof(T));
      }
    }
  }
  T of(unsigned lane, unsigned word) const { return words_[lane][word]; }

 private:
  T words_[shim::kWarp][n];
};

// The grid's body of "void mvnrob::cuda::kernel<Body>(Body::Args)".
std::string body_of(const char* entry) {
  int status = 0;
  char* text = abi::__cxa_demangle(entry, nullptr, nullptr, &status);
  const std::string name = status == 0 ? text : entry;
  std::free(text);
  const size_t from = name.find('<') + 1, to = name.rfind(">(");
  if (status != 0 || from == 0 || to == std::string::npos)
    throw std::invalid_argument("entry must be a kernel of cuda/launcher.h, got " + name);
  std::string body = name.substr(from, to - from);
  while (!body.empty() && body.back() == ' ') body.pop_back();
  return body;
}

}  // namespace

void fault(const char* file, int line, const char* what, uint64_t address) {
  throw std::runtime_error(running().grid().name() + " (" + file + ":" + std::to_string(line) +
                           "), thread " + std::to_string(running().thread()) + ": " + what + " " +
                           std::to_string(address));
}
void trap(const char* file, int line) { fault(file, line, "trap", 0); }

int64_t nudge(uint64_t bits) {
  const uint64_t seed = shim::stand_ins().approximate;
  if (seed == 0) return 0;
  bits = (bits ^ seed) * 0x9E3779B97F4A7C15u;
  return int64_t((bits ^ bits >> 32) % 3) - 1;
}

uint32_t thread_index() { return threadIdx.x; }
uint32_t block_size() { return blockDim.x; }
uint32_t block_index() { return blockIdx.x; }
uint32_t grid_size() { return gridDim.x; }
uint32_t grid_workspace_low() { return uint32_t(address(running().workspace())); }
uint32_t grid_workspace_high() { return uint32_t(address(running().workspace()) >> 32); }
Shared block_shared() { return {running().grid().shared, running().grid().shared_bytes}; }

void barrier(const char* file, int line) {
  running().wait(running().block().all(), site("bar.sync", file, line, true));
}
void warp_barrier(uint32_t mask, const char* file, int line) {
  shim::check_mask(mask, "bar.warp.sync");
  running().wait(running().block().warp(running().thread()),
                 site("bar.warp.sync", file, line, true));
}
void other_blocks_go_on(const char* file, int line) {
  running().pause(site("ld.acquire", file, line, true));
}

Shuffled shuffle(Shuffle mode, uint32_t a, uint32_t b, uint32_t c, uint32_t mask, const char* file,
                 int line) {
  const shim::Exchange exchange(mask, a, "shfl.sync", shim::Caller(file, line));
  const int lane = int(shim::lane()), by = int(b & 31), end = int(c & 31), part = int(c >> 8 & 31);
  const int last = (lane & part) | (end & ~part & 31), first = lane & part;
  int from = 0;
  bool inside = false;
  switch (mode) {
    case Shuffle::up:
      from = lane - by, inside = from >= last;
      break;
    case Shuffle::down:
      from = lane + by, inside = from <= last;
      break;
    case Shuffle::bfly:
      from = lane ^ by, inside = from <= last;
      break;
    case Shuffle::idx:
      from = first | (by & ~part), inside = from <= last;
      break;
  }
  if (!inside) from = lane;
  const bool there = unsigned(from) < exchange.lanes();
  return {there ? uint32_t(exchange.from(unsigned(from))) : ~0u, inside};
}

uint32_t ballot(bool vote, uint32_t mask, const char* file, int line) {
  const shim::Exchange exchange(mask, vote, "vote.sync", shim::Caller(file, line));
  uint32_t votes = 0;
  for (unsigned lane = 0; lane < exchange.lanes(); ++lane)
    votes |= uint32_t(exchange.from(lane)) << lane;
  return votes;
}

// Matrix i of 8 rows of 8 halves: lanes 8 i .. 8 i + 7 give the addresses of its rows; of every
// row, lane k gets halves 2 (k % 4) and the next, of row k / 4.
void ldmatrix_x4(uint32_t (&d)[4], const Shared& shared, uint64_t row, const char* file, int line) {
  const uint64_t own[] = {address(shared.at<unsigned char, 16>(row, file, line))};
  const Words<uint64_t, 1> rows(own, "ldmatrix", file, line);
  const unsigned lane = shim::lane();
  for (unsigned i = 0; i < 4; ++i) {
    const auto* halves = reinterpret_cast<const uint16_t*>(rows.of(8 * i + lane / 4, 0));
    d[i] = joined(halves[2 * (lane % 4)], halves[2 * (lane % 4) + 1]);
  }
}

// The ISA's names: group = lane / 4, member = lane % 4; element i of a fragment lies at
//   A: row group (+ 8 where i is 2, 3, 6 or 7), column 2 member + i % 2 (+ 8 for i >= 4)
//   B: row 2 member + i % 2 (+ 8 for i >= 2), column group
//   C: row group (+ 8 for i >= 2), column 2 member + i % 2
template <class Real>
void mma_of_16_bits(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                    const Real& real, const char* file, int line) {
  const Words<uint32_t, 4> of_a(a, "mma", file, line);
  const Words<uint32_t, 2> of_b(b, "mma", file, line);
  double left[16][16], right[16][8];
  const auto half = [&](uint32_t word, unsigned which) {
    return double(real(uint16_t(word >> 16 * which)));
  };
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned group = lane / 4, member = lane % 4;
    for (unsigned i = 0; i < 8; ++i)
      left[group + (i / 2 % 2 ? 8 : 0)][2 * member + i % 2 + (i >= 4 ? 8 : 0)] =
          half(of_a.of(lane, i / 2), i % 2);
    for (unsigned i = 0; i < 4; ++i)
      right[2 * member + i % 2 + (i >= 2 ? 8 : 0)][group] = half(of_b.of(lane, i / 2), i % 2);
  }
  const unsigned group = shim::lane() / 4, member = shim::lane() % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = group + (i >= 2 ? 8 : 0), column = 2 * member + i % 2;
    double sum = sums[i];
    for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k][column];
    sums[i] = float(sum);
  }
}

void mma_m16n8k16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  const char* file, int line) {
  mma_of_16_bits(sums, a, b, float_of_half, file, line);
}

void mma_m16n8k16_bf16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                       const char* file, int line) {
  const auto real = [](uint16_t bits) {
    const uint32_t word = uint32_t(bits) << 16;
    float x;
    std::memcpy(&x, &word, sizeof x);
    return x;
  };
  mma_of_16_bits(sums, a, b, real, file, line);
}

// Of doubles, A 16 x 8: element i at row group (+ 8 for odd i), column member (+ 4 for i >= 2);
// B 8 x 8: row member (+ 4 for i = 1), column group; C as above.
void mma_m16n8k8(double (&sums)[4], const double (&a)[4], const double (&b)[2], const char* file,
                 int line) {
  const Words<double, 4> of_a(a, "mma", file, line);
  const Words<double, 2> of_b(b, "mma", file, line);
  double left[16][8], right[8][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned group = lane / 4, member = lane % 4;
    for (unsigned i = 0; i < 4; ++i)
      left[group + (i % 2 ? 8 : 0)][member + (i >= 2 ? 4 : 0)] = of_a.of(lane, i);
    for (unsigned i = 0; i < 2; ++i) right[member + 4 * i][group] = of_b.of(lane, i);
  }
  const unsigned group = shim::lane() / 4, member = shim::lane() % 4;
  for (unsigned i = 0; i < 4; ++i)
    for (int k = 0; k < 8; ++k)
      sums[i] = fused(left[group + (i >= 2 ? 8 : 0)][k], right[k][2 * member + i % 2], sums[i]);
}

// A 8 x 4: row group, column member; B 4 x 8: row member, column group; C 8 x 8: row group, columns
// 2 member and the next.
void mma_m8n8k4(double (&sums)[2], const double (&a)[1], const double (&b)[1], const char* file,
                int line) {
  const Words<double, 1> of_a(a, "mma", file, line), of_b(b, "mma", file, line);
  double left[8][4], right[4][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    left[lane / 4][lane % 4] = of_a.of(lane, 0);
    right[lane % 4][lane / 4] = of_b.of(lane, 0);
  }
  for (unsigned i = 0; i < 2; ++i)
    for (int k = 0; k < 4; ++k)
      sums[i] = fused(left[shim::lane() / 4][k], right[k][2 * (shim::lane() % 4) + i], sums[i]);
}

void copy_async(unsigned char* shared, const unsigned char* from, uint32_t size, uint32_t bytes,
                const char* file, int line) {
  if (bytes != 0 && bytes != size) fault(file, line, "cp.async of a part of its bytes", bytes);
  running().block().copies(running().thread()).copy(shared, bytes == size ? from : nullptr, size);
}
void copy_commit() { running().block().copies(running().thread()).commit(); }
void copy_wait(unsigned pending) { running().block().copies(running().thread()).wait(pending); }

void cudaGraphSetConditional(unsigned char* handle, unsigned char* value) {
  uint64_t loop;
  uint32_t goes_on;
  std::memcpy(&loop, handle, sizeof loop);
  std::memcpy(&goes_on, value, sizeof goes_on);
  shim::set_loop(loop, goes_on != 0);
}

Kernel::Kernel(const char* entry, void (*run)(const void* args)) {
  shim::stand_ins().bodies.emplace(body_of(entry), run);
}

}  // namespace mvnrob::ptx
