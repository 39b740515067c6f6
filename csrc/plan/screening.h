// Which variables are dropped before integrating: those least likely to fail, while the sum of
// their probabilities of failing stays within tau. P_kept - dropped <= P <= P_kept (Bonferroni).
//
// Masses are collected in buckets, eight to an octave below tau, and whole buckets dropped from the
// smallest up: no sort, one pass, and the same choice on every backend, because the sums are
// integers (in units of tau 2^-40, rounded up, so that the bound stays one).
#pragma once
#include <cmath>
#include <cstdint>

#include "math/pack.h"

namespace mvnrob::plan {

constexpr int kScreenBuckets = 256;

// Masses of limits 38 standard deviations away underflow. Together they stay below this: nothing
// beside most p, and all of one that is smaller.
constexpr double kUnderflown = 1e-300;
// The tau of rows whose p may be that small: no variable goes that has limits.
constexpr double kKeepsAll = -1;
MVNROB_HD double screened_mass(double wanted) {
  return wanted < 1e10 * kUnderflown ? kKeepsAll : wanted;
}

// Of a mass <= tau, tau > 0: 0 next to tau, the last one for everything below 2^-31 tau.
MVNROB_HD int screen_bucket(double mass, double tau) {
  constexpr int kOne = 8 * 1023;  // exponent and three bits of the mantissa of 1
  const int below = kOne - int(math::as_uint(mass / tau) >> 49);
  return below < 0 ? 0 : below < kScreenBuckets ? below : kScreenBuckets - 1;
}

MVNROB_HD uint64_t screen_units(double mass, double tau) {
  return uint64_t(::ceil(mass / tau * 0x1p40));
}

// Buckets `first` and up are dropped: their sum is `units`.
struct ScreenCut {
  int first;
  uint64_t units;
};

template <class Units>
MVNROB_HD ScreenCut screen_cut(const Units* bucket_units) {
  ScreenCut cut{kScreenBuckets, 0};
  while (cut.first > 0 && cut.units + bucket_units[cut.first - 1] <= (uint64_t(1) << 40))
    cut.units += bucket_units[--cut.first];
  return cut;
}

// Limits that are as good as none, whatever p is: it would be exp(-5e13).
MVNROB_HD bool is_beyond(double upper, double lower) { return upper > 1e7 && lower < -1e7; }

// With tau = 0 only what underflows goes.
MVNROB_HD bool screened_out(double mass, double tau, const ScreenCut& cut, bool beyond) {
  if (tau > 0) return mass <= tau && screen_bucket(mass, tau) >= cut.first;
  return mass == 0 && (tau == 0 || beyond);
}

// `underflown`: whether masses of zero are among them, of limits that are not infinite.
MVNROB_HD double dropped_mass(double tau, const ScreenCut& cut, bool underflown) {
  const double mass = tau > 0 ? double(cut.units) * 0x1p-40 * tau : 0.0;
  return underflown ? math::max(mass, kUnderflown) : mass;
}

}  // namespace mvnrob::plan
