"""Writes csrc/math/normal_coefs.h: every coefficient used by elementary.h and normal.h.

Run: python csrc/math/fits/fit_normal.py [OUTPUT]
It rewrites the header and prints the table of fit errors, which the header repeats.
"""

import functools
import itertools
import struct
import sys
from pathlib import Path

from mpmath import atanh, binomial, erfc, erfinv, exp, log, log1p, mp, mpf, nstr, pi, sqrt
from remez import remez

mp.dps = 50
HEADER = Path(__file__).parent.parent / "normal_coefs.h"
ROOM = mpf("1.0001")  # the rounded quotient may fall just outside [-1/2, 1/2]


@functools.lru_cache(None)
def mills(x):
    """M(x) = Phi(-x) exp(x^2 / 2), x >= 0."""
    if x < 200:
        return erfc(x / sqrt(mpf(2))) * exp(x * x / 2) / 2
    total, term = mpf(1), mpf(1)
    for k in range(1, 30):
        term *= -(2 * k - 1) / (x * x)
        total += term
    return total / (x * sqrt(2 * pi))


@functools.lru_cache(None)
def gap(length):
    """R(l) = l - x where Phi(-x) = exp(-l^2 / 2): Newton's method on x^2 - 2 ln M(x) = l^2."""
    x = max(length - (log(length + 1) + mpf("0.9")) / (length + 1), mpf(0))
    for _ in range(80):
        step = (x * x - 2 * log(mills(x)) - length * length) * sqrt(2 * pi) * mills(x) / 2
        x -= step
        if abs(step) < mpf(10) ** -42:
            break
    return length - x


def in_powers(coefs, a, b, degree):
    """Ascending powers of x of sum_j coefs[j] (b + a x)^(degree - j)."""
    out = [mpf(0)] * (degree + 1)
    for j, c in enumerate(coefs):
        k = degree - j
        for i in range(k + 1):
            out[i] += c * binomial(k, i) * a**i * b ** (k - i)
    return out


def fit_mills(a, m, n):
    """M(x) = N(x) / D(x) in relative error on [0, inf), as M = s F(s), s = 1 / (1 + a x)."""
    a = mpf(a)

    @functools.lru_cache(None)
    def target(s):
        return a / sqrt(2 * pi) if s == 0 else mills((1 - s) / (a * s)) / s

    p, q, worst = remez(target, lambda s: 1 / target(s), 0, 1, m, n)
    num, den = in_powers(p, a, mpf(1), n - 1), in_powers(q, a, mpf(1), n)
    return [c / den[-1] for c in num], [c / den[-1] for c in den], worst


def fit_gap(hi, m, n):
    """R(l) = N(l) / D(l) in absolute error on [sqrt(2 ln 2), hi], via s = 1 / (2.5 + l)."""
    b = mpf("2.5")
    target = functools.lru_cache(None)(lambda s: gap(1 / s - b) / s)
    lo = sqrt(2 * log(mpf(2)))
    p, q, worst = remez(target, lambda s: s, 1 / (b + hi), 1 / (b + lo), m, n)
    num, den = in_powers(p, mpf(1), b, n - 1), in_powers(q, mpf(1), b, n)
    return [c / den[-1] for c in num], [c / den[-1] for c in den], worst


def fit_exp(degree):
    """exp(-r / 2) on |r| <= ln(2), relative error."""
    hi = log(mpf(2)) * ROOM
    p, _, worst = remez(lambda r: exp(-r / 2), lambda r: exp(r / 2), -hi, hi, degree, 0)
    return p, worst


def fit_log(degree):
    """-2 log(1 + f) = f P(f), absolute error for 1 + f in [1/sqrt 2, sqrt 2]."""

    def target(f):
        return -2 * log1p(f) / f if abs(f) > 1e-9 else -2 + f

    tiny = mpf(10) ** -20
    lo, hi = 1 / sqrt(mpf(2)) - 1, sqrt(mpf(2)) - 1
    p, _, worst = remez(target, lambda f: abs(f) + tiny, lo, hi, degree, 0)
    return p, worst


def fit_log_atanh(degree):
    """-2 log(1 + f) = -4 atanh(z) = z P(z^2), z = f / (2 + f), same f, absolute error."""

    def target(u):
        return -4 * atanh(sqrt(u)) / sqrt(u) if u > 1e-20 else mpf(-4)

    hi = ((sqrt(mpf(2)) - 1) / (sqrt(mpf(2)) + 1)) ** 2
    tiny = mpf(10) ** -20
    p, _, worst = remez(target, lambda u: sqrt(u) + tiny, 0, hi, degree, 0)
    return p, worst


def fit_centre(hi, degree):
    """Phi^-1(1/2 + q) = q P(q^2) for |q| <= hi, relative error."""

    @functools.lru_cache(None)
    def target(u):
        if u < mpf("1e-16"):
            return sqrt(2 * pi) * (1 + pi * u / 3)
        q = sqrt(u)
        return sqrt(mpf(2)) * erfinv(2 * q) / q

    p, _, worst = remez(target, lambda u: 1 / target(u), 0, mpf(hi) ** 2, degree, 0)
    return p, worst


SETS = []
DOUBLES = []  # members of the table of float64 coefficients, and their numbers
TABLE = []


def wrapped(opening, pieces, end):
    """``pieces``, separated by commas, in lines of at most 96 characters that begin below the first."""
    lines, line = [], opening
    for i, piece in enumerate(pieces):
        piece = f", {piece}" if i else piece
        if len(line) + len(piece) > 96:
            lines.append(line + ",")
            line, piece = " " * len(opening), piece[2:]
        line += piece
    return "\n".join([*lines, line + end])


def is_short(number):
    """Whether a float64 ends in 32 zeros: then it is a literal of one part in device code."""
    return struct.pack("<d", float(number))[:4] == bytes(4)


def emit(name, kind, coefs, what):
    """A function template; a leading coefficient of one is left to monic()."""
    digits = 9 if kind == "float" else 17
    rule = "poly"
    if coefs[-1] == 1:
        rule, coefs = "monic", coefs[:-1]
    numbers = [nstr(c, digits, min_fixed=-1, max_fixed=1) for c in coefs]
    if kind == "float":
        body = wrapped(f"  return {rule}(", ["x", *(f"{c}f" for c in numbers)], ");")
    else:
        short = len(list(itertools.takewhile(is_short, numbers)))
        value = f"{rule}(x, MVNROB_NUMBERS_OF(kDoubleCoefs).{name})"
        for c in reversed(numbers[:short]):
            value = f"fma({value}, x, T({c}))"
        body = f"  return {value};"
        rest = numbers[short:]
        DOUBLES.append((f"  double {name}[{len(rest)}];", wrapped("    {", rest, "},")))
    SETS.append(f"// {what}\ntemplate <class T>\nMVNROB_HD T {name}(T x, {kind}) {{\n{body}\n}}\n")


def record(what, domain, worst):
    TABLE.append(f"{what:<46} {domain:<22} {nstr(worst, 3)}")
    print(TABLE[-1], flush=True)


def main(out):
    for kind, a, n in (("float", "0.5", 5), ("double", "0.3", 10)):
        num, den, worst = fit_mills(a, n - 1, n)
        record(f"{kind} mills {n - 1}/{n}, relative", "[0, inf)", worst)
        emit("mills_num", kind, num, "Numerator of M(x) = Phi(-x) exp(x^2 / 2).")
        emit("mills_den", kind, den, "Denominator of M(x).")
    for kind, hi, n in (("float", 14, 5), ("double", 39, 12)):
        num, den, worst = fit_gap(mpf(hi), n - 1, n)
        record(f"{kind} gap {n - 1}/{n}, absolute", f"[1.177, {hi}]", worst)
        emit("gap_num", kind, num, "Numerator of R(l) = l - |Phi^-1(exp(-l^2 / 2))|.")
        emit("gap_den", kind, den, "Denominator of R(l).")
    for kind, hi, degree in (("float", "0.2", 5), ("double", "0.1", 7)):
        p, worst = fit_centre(hi, degree)
        record(f"{kind} centre, degree {2 * degree + 1}, relative", f"|q| <= {hi}", worst)
        emit("centre_poly", kind, p, "P(q^2) of Phi^-1(1/2 + q) = q P(q^2).")
    for kind, degree in (("float", 5), ("double", 11)):
        p, worst = fit_exp(degree)
        record(f"{kind} exp, degree {degree}, relative", "|r| <= ln(2)", worst)
        emit("exp_half", kind, p, "exp(-x / 2).")
    p, worst = fit_log(6)
    record("float log, degree 7, absolute", "[1/sqrt 2, sqrt 2]", worst)
    emit("log_poly", "float", p, "P(f) of -2 log(1 + f) = f P(f).")
    p, worst = fit_log_atanh(6)
    record("double log by atanh, degree 6, absolute", "[1/sqrt 2, sqrt 2]", worst)
    emit("log_poly", "double", p, "P(z^2) of -4 atanh(z) = z P(z^2).")

    table = "\n".join("//   " + row for row in TABLE)
    members, numbers = ("\n".join(part) for part in zip(*DOUBLES, strict=True))
    out.write_text(
        "// Written by csrc/math/fits/fit_normal.py; do not edit.\n// clang-format off\n"
        "// Worst error of each fit in exact arithmetic (the second argument only picks the set):\n"
        f"{table}\n"
        "#pragma once\n\n"
        '#include "config.h"\n#include "pack.h"\n\n'
        "namespace mvnrob::math {\ninline namespace MVNROB_ISA {\nnamespace coefs {\n\n"
        f"struct DoubleCoefs {{\n{members}\n}};\n"
        f"constexpr DoubleCoefs kDoubleCoefs = {{\n{numbers}\n}};\n"
        "MVNROB_NUMBERS(DoubleCoefs, kDoubleCoefs)\n\n"
        + "\n".join(SETS)
        + "\n}  // namespace coefs\n}  // namespace MVNROB_ISA\n}  // namespace mvnrob::math\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HEADER)
