// Times the functions of csrc/math over arrays that stay in the first-level cache, one thread.
// Built and run by bench_math.py, once per instruction set. Prints name,type,chains,ns per line.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "lattice.h"
#include "normal.h"

namespace {

namespace math = mvnrob::math;

constexpr int kCount = 4096;
constexpr int kRepeats = 15;
constexpr double kSecondsPerRepeat = 4e-3;

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

// Median over kRepeats of ns per element of body(first), which handles kStep elements.
template <int kStep, class F>
double time_ns(const F& body) {
  using clock = std::chrono::steady_clock;
  std::vector<double> ns;
  long passes = 1;
  while (true) {
    const auto start = clock::now();
    for (long k = 0; k < passes; ++k) {
      for (int i = 0; i < kCount; i += kStep) body(i);
      asm volatile("" ::: "memory");
    }
    const double s = std::chrono::duration<double>(clock::now() - start).count();
    if (s < kSecondsPerRepeat) {
      passes *= 2;
      continue;
    }
    ns.push_back(1e9 * s / (double(passes) * kCount));
    if (int(ns.size()) == kRepeats) break;
  }
  std::nth_element(ns.begin(), ns.begin() + kRepeats / 2, ns.end());
  return ns[kRepeats / 2];
}

template <class S, int kChains>
void run(const char* type, Data<S>& d) {
  using P = math::Pack<S, math::native_width<S> * kChains>;
  constexpr int n = math::width<P>;
  auto at = [](const std::vector<S>& v, int i) { return P::load(v.data() + i); };
  auto report = [&](const char* name, double ns) {
    std::printf("%s,%s,%d,%.4f\n", name, type, kChains, ns);
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

}  // namespace

int main() {
  Data<float> f;
  Data<double> d;
  run<float, 1>("float32", f);
  run<float, 2>("float32", f);
  run<float, 4>("float32", f);
  run<double, 1>("float64", d);
  run<double, 2>("float64", d);
  run<double, 4>("float64", d);
}
