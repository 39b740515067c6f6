// What translated PTX (translate.py) is made of: one instruction's meaning each, after the PTX ISA.
// What threads do together is in machine.cpp.
//
// Memory: global, constant, local and parameter addresses are the host's; those of shared memory
// count from kSharedStart. Every access must be aligned to its size, or the device faults.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace mvnrob::ptx {

// Not 0, which shared memory has on no device, and aligned to no more than the kernels ask for.
constexpr uint32_t kSharedStart = 1040;

[[noreturn]] void fault(const char* file, int line, const char* what, uint64_t address);
[[noreturn]] void trap(const char* file, int line);

template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, from);
}

template <class T>
inline T undefined() {
  if constexpr (std::is_same_v<T, bool>) {
    return true;
  } else {
    T x;
    std::memset(&x, 0xFF, sizeof x);
    return x;
  }
}
template <size_t n>
inline void undefine(unsigned char (&memory)[n]) {
  std::memset(memory, 0xFF, n);
}
inline uint64_t address(const void* p) { return reinterpret_cast<uintptr_t>(p); }

template <class T, int count>
inline T* at(uint64_t where, const char* file, int line) {
  if (where % (sizeof(T) * count) != 0) fault(file, line, "misaligned address", where);
  return reinterpret_cast<T*>(where);
}

struct Shared {
  unsigned char* base;
  uint64_t bytes;

  template <class T, int count>
  T* at(uint64_t where, const char* file, int line) const {
    if (where % (sizeof(T) * count) != 0) fault(file, line, "misaligned shared address", where);
    const uint64_t offset = where - kSharedStart;
    if (offset > bytes || bytes - offset < sizeof(T) * count)
      fault(file, line, "address outside of shared memory", where);
    return reinterpret_cast<T*>(base + offset);
  }
  uint64_t generic(uint64_t where, const char*, int) const {
    return address(base) + (where - kSharedStart);
  }
  uint64_t offset(uint64_t where, const char* file, int line) const {
    if (where - address(base) > bytes) fault(file, line, "not in shared memory", where);
    return where - address(base) + kSharedStart;
  }
};

// Whole numbers

template <class T>
using Twice = std::conditional_t<
    std::is_signed_v<T>,
    std::conditional_t<sizeof(T) == 2, int32_t,
                       std::conditional_t<sizeof(T) == 4, int64_t, __int128>>,
    std::conditional_t<sizeof(T) == 2, uint32_t,
                       std::conditional_t<sizeof(T) == 4, uint64_t, unsigned __int128>>>;
template <class T>
constexpr unsigned kBits = 8 * sizeof(T);

inline uint32_t joined(uint16_t low, uint16_t high) { return low | uint32_t(high) << 16; }
inline uint64_t joined(uint32_t low, uint32_t high) { return low | uint64_t(high) << 32; }

template <class T>
inline T ptx_mul_lo(T a, T b) {
  return T(std::make_unsigned_t<T>(a) * std::make_unsigned_t<T>(b));
}
template <class T>
inline Twice<T> ptx_mul_wide(T a, T b) {
  return Twice<T>(a) * b;
}
template <class T>
inline T ptx_mul_hi(T a, T b) {
  return T(ptx_mul_wide<T>(a, b) >> kBits<T>);
}
template <class T>
inline T ptx_mad_lo(T a, T b, T c) {
  using U = std::make_unsigned_t<T>;
  return T(U(a) * U(b) + U(c));
}
template <class T>
inline Twice<T> ptx_mad_wide(T a, T b, Twice<T> c) {
  using U = std::make_unsigned_t<Twice<T>>;
  return Twice<T>(U(ptx_mul_wide<T>(a, b)) + U(c));
}
template <class T>
inline T ptx_div(T a, T b) {
  if (b == 0) fault("div", 0, "division of whole numbers by zero", 0);
  return a / b;
}
template <class T>
inline T ptx_rem(T a, T b) {
  if (b == 0) fault("rem", 0, "division of whole numbers by zero", 0);
  return a % b;
}
// Shifts by more than the register is wide leave zeros, or copies of the sign.
template <class T>
inline T ptx_shl(T a, uint32_t n) {
  return n < kBits<T> ? T(a << n) : T(0);
}
template <class T>
inline T ptx_shr(T a, uint32_t n) {
  return T(a >> (n < kBits<T> ? n : kBits<T> - 1)) >> (n < kBits<T> ? 0 : 1);
}
template <class T>
inline T ptx_brev(T a) {
  T b = 0;
  for (unsigned i = 0; i < kBits<T>; ++i) b |= (a >> i & 1) << (kBits<T> - 1 - i);
  return b;
}
template <class T>
inline uint32_t ptx_popc(T a) {
  return uint32_t(__builtin_popcountll(a));
}
// The low bits of `field` take the place of `count` bits of `rest` from `first` on.
template <class T>
inline T ptx_bfi(T field, T rest, uint32_t first, uint32_t count) {
  first &= 0xff;
  count &= 0xff;
  for (uint32_t i = 0; i < count && first + i < kBits<T>; ++i) {
    const T bit = T(1) << (first + i);
    rest = field >> i & 1 ? rest | bit : rest & ~bit;
  }
  return rest;
}
template <class T>
inline T ptx_prmt(T a, T b, T selectors) {
  const uint64_t bytes = joined(a, b);
  T d = 0;
  for (int i = 0; i < 4; ++i) {
    const T selector = selectors >> 4 * i & 0xf;
    const T byte = T(bytes >> 8 * (selector & 7) & 0xff);
    d |= (selector & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << 8 * i;
  }
  return d;
}

// Real numbers

inline bool is_nan(float x) { return x != x; }
inline bool is_nan(double x) { return x != x; }

template <class T>
inline T ptx_add_rn(T a, T b) {
  return a + b;
}
template <class T>
inline T ptx_mul(T a, T b) {
  return a * b;
}
template <class T>
inline T ptx_mul_rn(T a, T b) {
  return a * b;
}
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
template <class T>
inline T ptx_fma_rn(T a, T b, T c) {
  return fused(a, b, c);
}
template <class T>
inline T ptx_div_rn(T a, T b) {
  return a / b;
}
template <class T>
inline T ptx_rcp_rn(T a) {
  return T(1) / a;
}
template <class T>
inline T ptx_sqrt_rn(T a) {
  return std::sqrt(a);
}
template <class T>
inline T ptx_abs(T a) {
  if constexpr (std::is_floating_point_v<T>)
    return std::fabs(a);
  else
    return a < 0 ? T(0 - std::make_unsigned_t<T>(a)) : a;
}
// The sign of the first on the second.
template <class T>
inline T ptx_copysign(T sign, T a) {
  return std::copysign(a, sign);
}
// A number beats a NaN, and -0 is below +0.
template <class T>
inline T ptx_min(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (is_nan(a)) return b;
    if (is_nan(b)) return a;
    if (a == b) return std::signbit(a) ? a : b;
  }
  return a < b ? a : b;
}
template <class T>
inline T ptx_max(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (is_nan(a)) return b;
    if (is_nan(b)) return a;
    if (a == b) return std::signbit(a) ? b : a;
  }
  return a > b ? a : b;
}

inline double rounded_rzi(double x) { return std::trunc(x); }
inline double rounded_rni(double x) { return std::nearbyint(x); }
inline double rounded_rmi(double x) { return std::floor(x); }
inline double rounded_rpi(double x) { return std::ceil(x); }
// Cut off at the ends of the type. A NaN gives 0 in 32 bits, the top bit alone in 64.
template <class T>
inline T to_whole(double x) {
  if (is_nan(x)) return sizeof(T) == 8 ? T(uint64_t(1) << 63) : T(0);
  if (x <= double(std::numeric_limits<T>::min())) return std::numeric_limits<T>::min();
  if (x >= double(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
  return T(x);
}

inline float float_of_half(uint16_t h) { return float(bits<_Float16>(h)); }
inline uint16_t half_of(float x) { return bits<uint16_t>(_Float16(x)); }

// Approximations move by up to the ISA's bound, this way or that, by a seed; 0: as near as can be.
// Flushed: what comes in and what goes out is no subnormal number.
int64_t nudge(uint64_t bits);

template <class T>
inline T flushed(T x) {
  return std::fabs(x) < std::numeric_limits<T>::min() ? std::copysign(T(0), x) : x;
}
// In float64 only the upper halves of argument and result count; in float32 an error of 2^-23 for
// reciprocals and 2^-22.4 for their roots, which is one unit in the last place or two.
template <class T>
inline T nudged(T x) {
  if (is_nan(x) || std::isinf(x) || x == 0) return x;
  if constexpr (sizeof(T) == 8) {
    const uint64_t b = bits<uint64_t>(x) + (uint64_t(1) << 31);
    return flushed(bits<T>(((b >> 32) + uint64_t(nudge(b))) << 32));
  } else {
    const uint32_t b = bits<uint32_t>(x);
    return flushed(bits<T>(uint32_t(b + nudge(b))));
  }
}
template <class T>
inline T upper_half(T x) {
  if constexpr (sizeof(T) == 8)
    return is_nan(x) ? x : flushed(bits<T>(bits<uint64_t>(x) >> 32 << 32));
  else
    return flushed(x);
}
template <class T>
inline T ptx_rcp_approx_ftz(T a) {
  return nudged(T(1) / upper_half(a));
}
template <class T>
inline T ptx_rsqrt_approx_ftz(T a) {
  return nudged(T(1) / std::sqrt(upper_half(a)));
}

// Atomics

template <class T>
inline T atom_add(T* p, T x) {
  return __atomic_fetch_add(p, x, __ATOMIC_RELAXED);
}
template <class T>
inline T atom_or(T* p, T x) {
  return __atomic_fetch_or(p, x, __ATOMIC_RELAXED);
}
template <class T>
inline T atom_and(T* p, T x) {
  return __atomic_fetch_and(p, x, __ATOMIC_RELAXED);
}
template <class T>
inline T atom_exch(T* p, T x) {
  return __atomic_exchange_n(p, x, __ATOMIC_RELAXED);
}
// The shim runs one thread at a time.
template <class T>
inline T atom_min(T* p, T x) {
  const T old = *p;
  *p = x < old ? x : old;
  return old;
}
template <class T>
inline T atom_max(T* p, T x) {
  const T old = *p;
  *p = x > old ? x : old;
  return old;
}

// Together with other threads (machine.cpp)

uint32_t thread_index();
uint32_t block_size();
uint32_t block_index();
uint32_t grid_size();
uint32_t grid_workspace_low();
uint32_t grid_workspace_high();
Shared block_shared();

void barrier(const char* file, int line);
void warp_barrier(uint32_t mask, const char* file, int line);
// Before a look at memory that another block is to change.
void other_blocks_go_on(const char* file, int line);

enum class Shuffle { up, down, bfly, idx };
struct Shuffled {
  uint32_t value;
  bool inside;
};
Shuffled shuffle(Shuffle mode, uint32_t a, uint32_t b, uint32_t c, uint32_t mask, const char* file,
                 int line);
uint32_t ballot(bool vote, uint32_t mask, const char* file, int line);

void ldmatrix_x4(uint32_t (&d)[4], const Shared& shared, uint64_t row, const char* file, int line);
// sums += a b
void mma_m16n8k16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  const char* file, int line);
void mma_m16n8k16_bf16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                       const char* file, int line);
void mma_m16n8k8(double (&sums)[4], const double (&a)[4], const double (&b)[2], const char* file,
                 int line);
void mma_m8n8k4(double (&sums)[2], const double (&a)[1], const double (&b)[1], const char* file,
                int line);

// `bytes` of them are there: all or none.
void copy_async(unsigned char* shared, const unsigned char* from, uint32_t size, uint32_t bytes,
                const char* file, int line);
void copy_commit();
void copy_wait(unsigned pending);

// Called with the addresses of its parameters.
void cudaGraphSetConditional(unsigned char* handle, unsigned char* value);

// Makes a translated entry run in place of the body that it was compiled from.
struct Kernel {
  Kernel(const char* entry, void (*run)(const void* args));
};

}  // namespace mvnrob::ptx
