// Written by csrc/math/fits/fit_quadrature.py; do not edit.
// clang-format off
#pragma once

#include "config.h"
#include "pack.h"

namespace mvnrob::math {
inline namespace MVNROB_ISA {
namespace tables {

// Positive nodes and weights of the 20-point Gauss-Legendre rule on [-1, 1].
MVNROB_HD double gauss20_node(int i) {
  static constexpr double x[] = {
      0.076526521133497333755,
      0.22778585114164507808,
      0.37370608871541956067,
      0.510867001950827098,
      0.63605368072651502545,
      0.74633190646015079261,
      0.83911697182221882339,
      0.91223442825132590587,
      0.96397192727791379127,
      0.99312859918509492479};
  return x[i];
}
MVNROB_HD double gauss20_weight(int i) {
  static constexpr double w[] = {
      0.1527533871307258507,
      0.14917298647260374679,
      0.14209610931838205133,
      0.1316886384491766269,
      0.11819453196151841731,
      0.10193011981724043504,
      0.083276741576704748725,
      0.06267204833410906357,
      0.040601429800386941331,
      0.017614007139152118312};
  return w[i];
}

// Gauss-Kronrod 10/21: node i >= 0 and -node (node 0 once); weight of the 21-point rule
// and of the embedded 10-point rule (zero where that has no node).
MVNROB_HD double kronrod21_node(int i) {
  static constexpr double x[] = {
      0.0,
      0.14887433898163121088,
      0.29439286270146019813,
      0.4333953941292471908,
      0.56275713466860468334,
      0.67940956829902440623,
      0.78081772658641689706,
      0.86506336668898451073,
      0.930157491355708226,
      0.97390652851717172008,
      0.99565716302580808074};
  return x[i];
}
MVNROB_HD double kronrod21_weight(int i) {
  static constexpr double w[] = {
      0.14944555400291690566,
      0.14773910490133849137,
      0.1427759385770600808,
      0.13470921731147332593,
      0.12349197626206585108,
      0.1093871588022976419,
      0.093125454583697605535,
      0.075039674810919952767,
      0.054755896574351996031,
      0.032558162307964727479,
      0.011694638867371874278};
  return w[i];
}
MVNROB_HD double kronrod21_coarse(int i) {
  static constexpr double w[] = {
      0.0,
      0.29552422471475287017,
      0.0,
      0.26926671930999635509,
      0.0,
      0.219086362515982044,
      0.0,
      0.14945134915058059315,
      0.0,
      0.066671344308688137594,
      0.0};
  return w[i];
}

// P(x^2) of sin(x) = x + x^3 P(x^2) on [-pi/2, pi/2]; relative error of the fit 2.76e-19.
MVNROB_HD double sine_poly(double u) {
  return poly(u, -0.16666666666666666,
              0.0083333333333331942,
              -0.00019841269841209201,
              2.7557319211134632e-6,
              -2.5052106872588458e-8,
              1.6058939696223839e-10,
              -7.6429912594975317e-13,
              2.7211727284710812e-15);
}

}  // namespace tables
}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
