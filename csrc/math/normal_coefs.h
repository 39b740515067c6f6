// Written by csrc/math/fits/fit_normal.py; do not edit.
// clang-format off
// Worst error of each fit in exact arithmetic (the second argument only picks the set):
//   float mills 4/5, relative                      [0, inf)               4.24e-8
//   double mills 9/10, relative                    [0, inf)               3.9e-16
//   float gap 4/5, absolute                        [1.177, 14]            2.0e-8
//   double gap 11/12, absolute                     [1.177, 39]            8.67e-14
//   float centre, degree 11, relative              |q| <= 0.2             6.44e-10
//   double centre, degree 15, relative             |q| <= 0.1             8.36e-18
//   float exp, degree 5, relative                  |r| <= ln(2)           7.5e-8
//   double exp, degree 11, relative                |r| <= ln(2)           3.06e-18
//   float log, degree 7, absolute                  [1/sqrt 2, sqrt 2]     4.17e-7
//   double log by atanh, degree 6, absolute        [1/sqrt 2, sqrt 2]     5.98e-17
#pragma once

#include "config.h"
#include "pack.h"

namespace mvnrob::math {
inline namespace MVNROB_ISA {
namespace coefs {

struct DoubleCoefs {
  double mills_num[10];
  double mills_den[10];
  double gap_num[12];
  double gap_den[12];
  double centre_poly[8];
  double exp_half[10];
  double log_poly[7];
};
constexpr DoubleCoefs kDoubleCoefs = {
    {1.0205062123095866e+5, 1.6376728149880301e+5, 1.2952610958399353e+5, 6.5062028577372583e+4,
     2.2680775590029988e+4, 5.6726982616243352e+3, 1.0187924766653127e+3, 1.2728042659279761e+2,
     1.0132896822322653e+1, 3.9894228040143252e-1},
    {2.0410124246191741e+5, 4.9038379319863744e+5, 5.4827125539860377e+5, 3.7667240709858471e+5,
     1.7667758546206241e+5, 5.9355208340007694e+4, 1.4536390577414005e+4, 2.5791334336050255e+3,
     3.2004471610500933e+2, 2.5399405678751584e+1},
    {1.1563292341800665e+9, 2.2267384954611902e+10, 9.0131259500996834e+10,
     1.2566651145887272e+11, 7.9086133630937614e+10, 2.8080713892471993e+10,
     5.7851060591590824e+9, 6.3619507875187843e+8, 3.3488882858037458e+7, 7.4306397126197519e+5,
     5.6487459248022156e+3, 8.9388816038548566},
    {2.930435402180711e+8, 8.0545073767250018e+9, 4.5443733012924004e+10, 9.0284452154351565e+10,
     8.1008471367277826e+10, 3.9232477841250305e+10, 1.1352929274217298e+10,
     1.9166746470588659e+9, 1.728958269884388e+8, 7.502680003695724e+6, 1.3726607185808133e+5,
     8.4510681160149174e+2},
    {2.5066282746310005, 2.624934990954004, 5.7725335380523727, 1.5667609408726458e+1,
     4.7035613549216769e+1, 1.4986657598357846e+2, 4.9198908084152195e+2, 1.9461310479147075e+3},
    {1.2500000000000044e-1, -2.083333333333271e-2, 2.604166666655789e-3, -2.6041666667373065e-4,
     2.1701388986347621e-5, -1.5500991744178608e-6, 9.6880806562153602e-8, -5.382348158339937e-9,
     2.6984676486576373e-10, -1.2204255252047869e-11},
    {-4.0000000000000052, -1.3333333333267367, -8.0000000241069185e-1, -5.7142818334270416e-1,
     -4.4447645779788435e-1, -3.622274855661212e-1, -3.3896190877924799e-1},
};
MVNROB_NUMBERS(DoubleCoefs, kDoubleCoefs)

// Numerator of M(x) = Phi(-x) exp(x^2 / 2).
template <class T>
MVNROB_HD T mills_num(T x, float) {
  return poly(x, 3.52375728e+1f, 3.34449373e+1f, 1.48930279e+1f, 3.55474234f, 3.98942297e-1f);
}

// Denominator of M(x).
template <class T>
MVNROB_HD T mills_den(T x, float) {
  return monic(x, 7.04751425e+1f, 1.23121088e+2f, 9.27830704e+1f, 3.83298653e+1f, 8.91043733f);
}

// Numerator of M(x) = Phi(-x) exp(x^2 / 2).
template <class T>
MVNROB_HD T mills_num(T x, double) {
  return poly(x, MVNROB_NUMBERS_OF(kDoubleCoefs).mills_num);
}

// Denominator of M(x).
template <class T>
MVNROB_HD T mills_den(T x, double) {
  return monic(x, MVNROB_NUMBERS_OF(kDoubleCoefs).mills_den);
}

// Numerator of R(l) = l - |Phi^-1(exp(-l^2 / 2))|.
template <class T>
MVNROB_HD T gap_num(T x, float) {
  return poly(x, 2.42107157e+3f, 8.27100763e+3f, 3.80132105e+3f, 4.0527205e+2f, 6.83327862f);
}

// Denominator of R(l).
template <class T>
MVNROB_HD T gap_den(T x, float) {
  return monic(x, 7.40496624e+2f, 4.69538623e+3f, 4.88076298e+3f, 1.3235219e+3f, 9.27980289e+1f);
}

// Numerator of R(l) = l - |Phi^-1(exp(-l^2 / 2))|.
template <class T>
MVNROB_HD T gap_num(T x, double) {
  return poly(x, MVNROB_NUMBERS_OF(kDoubleCoefs).gap_num);
}

// Denominator of R(l).
template <class T>
MVNROB_HD T gap_den(T x, double) {
  return monic(x, MVNROB_NUMBERS_OF(kDoubleCoefs).gap_den);
}

// P(q^2) of Phi^-1(1/2 + q) = q P(q^2).
template <class T>
MVNROB_HD T centre_poly(T x, float) {
  return poly(x, 2.50662827f, 2.62493785f, 5.77171786f, 1.57521325e+1f, 4.31429693e+1f,
              2.28944451e+2f);
}

// P(q^2) of Phi^-1(1/2 + q) = q P(q^2).
template <class T>
MVNROB_HD T centre_poly(T x, double) {
  return poly(x, MVNROB_NUMBERS_OF(kDoubleCoefs).centre_poly);
}

// exp(-x / 2).
template <class T>
MVNROB_HD T exp_half(T x, float) {
  return poly(x, 1.00000007f, -4.99999846e-1f, 1.24997236e-1f, -2.08344688e-2f, 2.61971495e-3f,
              -2.59301556e-4f);
}

// exp(-x / 2).
template <class T>
MVNROB_HD T exp_half(T x, double) {
  return fma(fma(poly(x, MVNROB_NUMBERS_OF(kDoubleCoefs).exp_half), x, T(-5.0000000000000002e-1)), x, T(1.0));
}

// P(f) of -2 log(1 + f) = f P(f).
template <class T>
MVNROB_HD T log_poly(T x, float) {
  return poly(x, -2.00000649f, 1.00003931f, -6.66066059e-1f, 4.97626693e-1f, -4.1209246e-1f,
              3.78040047e-1f, -2.36552797e-1f);
}

// P(z^2) of -4 atanh(z) = z P(z^2).
template <class T>
MVNROB_HD T log_poly(T x, double) {
  return poly(x, MVNROB_NUMBERS_OF(kDoubleCoefs).log_poly);
}

}  // namespace coefs
}  // namespace MVNROB_ISA
}  // namespace mvnrob::math
