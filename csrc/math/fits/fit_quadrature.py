"""Writes csrc/math/quadrature_tables.h: quadrature nodes and the sine polynomial.

Run: python csrc/math/fits/fit_quadrature.py [OUTPUT]
"""

import sys
from pathlib import Path

from mpmath import legendre, lu_solve, matrix, mp, mpf, nstr, pi, polyroots, sin
from remez import horner, remez

mp.dps = 60
HEADER = Path(__file__).parent.parent / "quadrature_tables.h"


def legendre_coefs(n):
    """Ascending powers of the Legendre polynomial P_n."""
    p, q = [mpf(1)], [mpf(0), mpf(1)]
    if n == 0:
        return p
    for k in range(1, n):
        shifted = [mpf(0)] + [(2 * k + 1) * c / (k + 1) for c in q]
        old = [k * c / (k + 1) for c in p] + [mpf(0)] * (len(shifted) - len(p))
        p, q = q, [a - b for a, b in zip(shifted, old, strict=True)]
    return q


def integrate(coefs):
    """Integral over [-1, 1] of a polynomial."""
    return sum(2 * c / (j + 1) for j, c in enumerate(coefs) if j % 2 == 0)


def multiply(a, b):
    out = [mpf(0)] * (len(a) + len(b) - 1)
    for i, u in enumerate(a):
        for j, v in enumerate(b):
            out[i + j] += u * v
    return out


def roots(coefs):
    found = polyroots(coefs[::-1], maxsteps=500, extraprec=400)
    return sorted(z.real for z in found)


def weights(nodes):
    """Interpolatory weights: exact for the Legendre polynomials up to the number of nodes."""
    n = len(nodes)
    a, b = matrix(n, n), matrix(n, 1)
    for k in range(n):
        for i, x in enumerate(nodes):
            a[k, i] = legendre(k, x)
    b[0] = 2
    return list(lu_solve(a, b))


def stieltjes(n):
    """Monic E of degree n + 1 with int P_n E x^k = 0 for k <= n: Kronrod's extra nodes."""
    base = legendre_coefs(n)
    degree = n + 1
    free = [j for j in range(degree) if (degree - j) % 2 == 0]
    tests = [k for k in range(n + 1) if (n + degree + k) % 2 == 0][: len(free)]

    def moment(j, k):
        return integrate(multiply(base, [mpf(0)] * (j + k) + [mpf(1)]))

    a, b = matrix(len(free), len(free)), matrix(len(free), 1)
    for row, k in enumerate(tests):
        for col, j in enumerate(free):
            a[row, col] = moment(j, k)
        b[row] = -moment(degree, k)
    sol = lu_solve(a, b)
    coefs = [mpf(0)] * degree + [mpf(1)]
    for col, j in enumerate(free):
        coefs[j] = sol[col]
    return coefs


def sine():
    """sin(x) = x + x^3 P(x^2) on [0, pi/2], relative error."""

    def target(u):
        if u < mpf("1e-3"):
            return horner([(-1) ** (k + 1) / mp.factorial(2 * k + 3) for k in range(12)], u)
        x = u ** mpf("0.5")
        return (sin(x) - x) / x**3

    def weight(u):
        x = u ** mpf("0.5")
        return x**3 / sin(x) if u > 0 else mpf(0)

    p, _, worst = remez(target, weight, 0, (pi / 2 * mpf("1.000001")) ** 2, 7, 0)
    return p, worst


def table(name, values):
    body = ",\n      ".join(nstr(v, 20) for v in values)
    return f"  static constexpr double {name}[] = {{\n      {body}}};\n"


def main(out):
    gauss = [x for x in roots(legendre_coefs(20)) if x > 0]
    gauss_w = weights([-x for x in reversed(gauss)] + gauss)[10:]
    inner = roots(legendre_coefs(10))
    outer = roots(stieltjes(10))
    every = sorted(inner + outer)
    every_w = weights(every)
    inner_w = weights(inner)
    half = [(x, w) for x, w in zip(every, every_w, strict=True) if x > -(mpf(10) ** -30)]
    half = [(abs(x) if abs(x) < mpf(10) ** -30 else x, w) for x, w in half]
    coarse = {nstr(x, 30): w for x, w in zip(inner, inner_w, strict=True)}
    gk = [
        (x if x > mpf(10) ** -30 else mpf(0), w, coarse.get(nstr(x, 30), mpf(0))) for x, w in half
    ]
    # Both rules must integrate what theory says: degree 39 and degree 31.
    for degree, nodes in (
        (38, list(zip(gauss, gauss_w, strict=True))),
        (30, [(x, w) for x, w, _ in gk]),
    ):
        total = sum((2 if x > 0 else 1) * w * x**degree for x, w in nodes)
        assert abs(total - mpf(2) / (degree + 1)) < mpf(10) ** -30, (degree, total)
    poly_sin, worst = sine()
    print("Gauss-Legendre 20: exact to degree 39; Gauss-Kronrod 10/21: exact to degree 31")
    print("sine, degree 17, relative on [0, pi/2]:", nstr(worst, 3))
    coefs = ",\n              ".join(nstr(c, 17) for c in poly_sin)
    out.write_text(
        "// Written by csrc/math/fits/fit_quadrature.py; do not edit.\n// clang-format off\n"
        "#pragma once\n\n"
        '#include "config.h"\n#include "pack.h"\n\n'
        "namespace mvnrob::math {\ninline namespace MVNROB_ISA {\nnamespace tables {\n\n"
        "// Positive nodes and weights of the 20-point Gauss-Legendre rule on [-1, 1].\n"
        "MVNROB_HD double gauss20_node(int i) {\n" + table("x", gauss) + "  return x[i];\n}\n"
        "MVNROB_HD double gauss20_weight(int i) {\n" + table("w", gauss_w) + "  return w[i];\n}\n\n"
        "// Gauss-Kronrod 10/21: node i >= 0 and -node (node 0 once); weight of the 21-point rule\n"
        "// and of the embedded 10-point rule (zero where that has no node).\n"
        "MVNROB_HD double kronrod21_node(int i) {\n"
        + table("x", [x for x, _, _ in gk])
        + "  return x[i];\n}\n"
        "MVNROB_HD double kronrod21_weight(int i) {\n"
        + table("w", [w for _, w, _ in gk])
        + "  return w[i];\n}\n"
        "MVNROB_HD double kronrod21_coarse(int i) {\n"
        + table("w", [w for _, _, w in gk])
        + "  return w[i];\n}\n\n"
        "// P(x^2) of sin(x) = x + x^3 P(x^2) on [-pi/2, pi/2]; relative error of the fit "
        f"{nstr(worst, 3)}.\n"
        "MVNROB_HD double sine_poly(double u) {\n"
        f"  return poly(u, {coefs});\n}}\n\n"
        "}  // namespace tables\n}  // namespace MVNROB_ISA\n}  // namespace mvnrob::math\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HEADER)
