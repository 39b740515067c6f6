// Two loops over packs: the fused step of the sampler (lattice point, step, weight times e), and
// plain multiply-adds. Built, called and disassembled by bench_roofline.py, which counts the
// first's instructions; the second is the machine's rate.
#include <cstdint>

#include "lattice.h"
#include "normal.h"

namespace math = mvnrob::math;

template <class S>
[[gnu::always_inline]] inline void step(const S* t, S* value, S* complement, S* y, uint32_t count,
                                        uint32_t generator, uint32_t shift) {
  using P = math::Pack<S, math::native_width<S>>;
  const auto lane = math::iota<P>();
  for (uint32_t i = 0; i < count; i += math::width<P>) {
    P w, wc, e, ec, drawn;
    math::lattice_point<P>(lane + math::uint_broadcast<P>(i), generator, shift, w, wc);
    math::step_upper(P::load(t + i), w, wc, e, ec, drawn);
    drawn.store(y + i);
    const P f = P::load(value + i);
    math::fma(f, ec, P::load(complement + i)).store(complement + i);
    (f * e).store(value + i);
  }
}

// `count` multiply-adds of one element each in twelve independent chains.
template <class S>
[[gnu::always_inline]] inline void multiply_add(uint32_t count) {
  using P = math::Pack<S, math::native_width<S>>;
  const P m(S(0.999));
  P x[12];
  for (auto& v : x) v = m;
  for (uint32_t i = 0; i < count; i += 12 * math::width<P>) {
    for (auto& v : x) {
      v = math::fma(v, m, m);
      asm volatile("" : "+x"(v.v));  // stays in its register, and is not optimised away
    }
  }
}

#define MVNROB_LOOPS(S, NAME)                                                            \
  extern "C" void step_##NAME(const S* t, S* value, S* complement, S* y, uint32_t count, \
                              uint32_t generator, uint32_t shift) {                      \
    step<S>(t, value, complement, y, count, generator, shift);                           \
  }                                                                                      \
  extern "C" void multiply_add_##NAME(uint32_t count) { multiply_add<S>(count); }
MVNROB_LOOPS(float, float32)
MVNROB_LOOPS(double, float64)

extern "C" uint32_t width_float32() { return math::native_width<float>; }
extern "C" uint32_t width_float64() { return math::native_width<double>; }
