// The loops whose assembly tests/test_math.py reads.
#include "lattice.h"
#include "normal.h"

namespace math = mvnrob::math;

template <class S>
using Vec = math::Pack<S, math::native_width<S>>;

#define MVNROB_HOT_LOOPS(S, name)                                                                  \
  extern "C" void hot_upper_##name(const S* t, const S* w, const S* wc, S* e, S* y, long n) {      \
    for (long i = 0; i < n; i += math::native_width<S>) {                                          \
      Vec<S> a, b, c;                                                                              \
      math::step_upper(Vec<S>::load(t + i), Vec<S>::load(w + i), Vec<S>::load(wc + i), a, b, c);   \
      a.store(e + i);                                                                              \
      c.store(y + i);                                                                              \
    }                                                                                              \
  }                                                                                                \
  extern "C" void hot_interval_##name(const S* t, const S* u, const S* w, const S* wc, S* e, S* y, \
                                      long n) {                                                    \
    for (long i = 0; i < n; i += math::native_width<S>) {                                          \
      Vec<S> a, b, c;                                                                              \
      math::step_interval(Vec<S>::load(t + i), Vec<S>::load(u + i), Vec<S>::load(w + i),           \
                          Vec<S>::load(wc + i), a, b, c);                                          \
      a.store(e + i);                                                                              \
      c.store(y + i);                                                                              \
    }                                                                                              \
  }                                                                                                \
  extern "C" void hot_pair_##name(const S* t, S* p, S* q, long n) {                                \
    for (long i = 0; i < n; i += math::native_width<S>) {                                          \
      Vec<S> a, b;                                                                                 \
      math::ndtr_pair(Vec<S>::load(t + i), a, b);                                                  \
      a.store(p + i);                                                                              \
      b.store(q + i);                                                                              \
    }                                                                                              \
  }                                                                                                \
  extern "C" void hot_lattice_##name(uint32_t k, uint32_t a, uint32_t s, S* w, S* wc, long n) {    \
    for (long i = 0; i < n; i += math::native_width<S>) {                                          \
      Vec<S> x, z;                                                                                 \
      const auto lane = math::iota<Vec<S>>();                                                      \
      math::lattice_point<Vec<S>>(lane + math::uint_broadcast<Vec<S>>(k + uint32_t(i)), a, s, x,   \
                                  z);                                                              \
      x.store(w + i);                                                                              \
      z.store(wc + i);                                                                             \
    }                                                                                              \
  }

MVNROB_HOT_LOOPS(float, f)
MVNROB_HOT_LOOPS(double, d)
