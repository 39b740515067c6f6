// Times the functions of csrc/math over arrays that stay in the first-level cache, one thread.
// Built and run by bench_math.py, once per instruction set. A line holds function, type, packs that
// go through one call together, median and least ns per element.
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "lattice.h"
#include "normal.h"

namespace {

namespace math = mvnrob::math;

constexpr int kCount = 4096;
constexpr int kRepeats = 21;
constexpr double kSecondsPerRepeat = 2e-3;

template <class S>
struct Data {
  std::vector<S> t, b, w, wc, p, q, r;
  Data() : t(kCount), b(kCount), w(kCount), wc(kCount), p(kCount), q(kCount), r(kCount) {
    for (int i = 0; i < kCount; ++i) {
      S c;
      math::lattice_point<S>(uint32_t(i), 0x6a09e667u, 0x12345678u, w[i], wc[i]);
      math::lattice_point<S>(uint32_t(i), 0xbb67ae85u, 0x9abcdef0u, b[i], c);
      t[i] = S(8) * b[i] - S(4);
      b[i] = t[i] + S(3) * w[i];
      p[i] = S(0.5) * w[i];
    }
  }
};

double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

struct Times {
  double median, least;
};

// ns per element of body(first), which handles kStep elements: processor time of this thread.
template <int kStep, class F>
Times time_ns(const F& body) {
  std::vector<double> ns;
  long passes = 1;
  while (int(ns.size()) < kRepeats) {
    const double start = now();
    for (long k = 0; k < passes; ++k) {
      for (int i = 0; i < kCount; i += kStep) body(i);
      asm volatile("" ::: "memory");
    }
    const double s = now() - start;
    if (s < kSecondsPerRepeat) {
      passes *= 2;
    } else {
      ns.push_back(1e9 * s / (double(passes) * kCount));
    }
  }
  std::sort(ns.begin(), ns.end());
  return {ns[kRepeats / 2], ns[0]};
}

// Twelve independent chains of multiply-adds: what the machine gives at this moment. A neighbour on
// the same core halves it, and every other figure with it.
template <class S>
Times multiply_adds() {
  using P = math::Pack<S, math::native_width<S>>;
  const P m(S(0.999));
  constexpr int kRounds = 128;
  const Times t = time_ns<kRounds * math::native_width<S>>([&](int) {
    P x[12];
    for (auto& v : x) v = m;
    for (int k = 0; k < kRounds; ++k) {
      for (auto& v : x) {
        v = math::fma(v, m, m);
        asm volatile("" : "+x"(v.v));  // stays in its register, and is not optimised away
      }
    }
  });
  return {t.median / 12, t.least / 12};
}

// A wrong result prints no time: steps must satisfy Phi(y) = w Phi(t), Phi as the library has it.
template <class S>
bool right(const Data<S>& d) {
  const double bound = sizeof(S) == 4 ? 3e-6 : 1e-12;
  for (int i = 0; i < kCount; ++i) {
    S e, ec, y;
    math::step_upper(d.t[i], d.w[i], d.wc[i], e, ec, y);
    const double phi_t = 0.5 * std::erfc(-double(d.t[i]) * M_SQRT1_2);
    const double phi_y = 0.5 * std::erfc(-double(y) * M_SQRT1_2);
    if (!(std::fabs(phi_y / (double(d.w[i]) * phi_t) - 1) < bound * (1 + std::fabs(double(y))) &&
          std::fabs(double(e) / phi_t - 1) < bound)) {
      return false;
    }
  }
  return true;
}

template <class S, int kChains>
void run(const char* type, Data<S>& d) {
  using P = math::Pack<S, math::native_width<S> * kChains>;
  constexpr int n = math::width<P>;
  auto at = [](const std::vector<S>& v, int i) { return P::load(v.data() + i); };
  auto report = [&](const char* name, Times t) {
    std::printf("%s,%s,%d,%.4f,%.4f\n", name, type, kChains, t.median, t.least);
  };
  report("ndtr_pair", time_ns<n>([&](int i) {
           P p, q;
           math::ndtr_pair(at(d.t, i), p, q);
           p.store(&d.q[i]);
           q.store(&d.r[i]);
         }));
  report("ndtri_half", time_ns<n>([&](int i) { math::ndtri_half(at(d.p, i)).store(&d.r[i]); }));
  report("ndtri", time_ns<n>([&](int i) { math::ndtri(at(d.w, i)).store(&d.r[i]); }));
  report("step_upper", time_ns<n>([&](int i) {
           P e, ec, y;
           math::step_upper(at(d.t, i), at(d.w, i), at(d.wc, i), e, ec, y);
           e.store(&d.q[i]);
           y.store(&d.r[i]);
         }));
  report("step_interval", time_ns<n>([&](int i) {
           P e, ec, y;
           math::step_interval(at(d.t, i), at(d.b, i), at(d.w, i), at(d.wc, i), e, ec, y);
           e.store(&d.q[i]);
           y.store(&d.r[i]);
         }));
  const auto lane = math::iota<P>();
  report("lattice_point", time_ns<n>([&](int i) {
           P w, wc;
           math::lattice_point<P>(lane + math::uint_broadcast<P>(uint32_t(i)), 0x6a09e667u,
                                  0x12345678u, w, wc);
           w.store(&d.q[i]);
           wc.store(&d.r[i]);
         }));
  report("fused_step", time_ns<n>([&](int i) {  // lattice point, step, weight times e
           P w, wc, e, ec, y;
           math::lattice_point<P>(lane + math::uint_broadcast<P>(uint32_t(i)), 0x6a09e667u,
                                  0x12345678u, w, wc);
           math::step_upper(at(d.t, i), w, wc, e, ec, y);
           (e * at(d.p, i)).store(&d.q[i]);
           y.store(&d.r[i]);
         }));
}

template <class S>
bool run_all(const char* type) {
  Data<S> d;
  if (!right(d)) {
    std::fprintf(stderr, "bench_math: %s results are wrong, nothing is timed\n", type);
    return false;
  }
  const Times t = multiply_adds<S>();
  std::printf("multiply_add,%s,12,%.4f,%.4f\n", type, t.median, t.least);
  run<S, 1>(type, d);
  run<S, 2>(type, d);
  run<S, 4>(type, d);
  return true;
}

}  // namespace

int main() { return run_all<float>("float32") && run_all<double>("float64") ? 0 : 1; }
