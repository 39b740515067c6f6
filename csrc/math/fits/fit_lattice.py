"""Writes csrc/math/lattice_table.h: generators of an embedded rank-1 lattice sequence in base 2.

Run: python csrc/math/fits/fit_lattice.py [OUTPUT]
A minute. It rewrites the header and prints the table of worst-case errors, which the header
repeats.

Component by component (Sloan, Kuo and Joe 2002), fast (Nuyens and Cools 2006), for all N = 2^m points
between two levels at once (Cools, Kuo and Nuyens 2006): each component minimises over the odd
numbers z mod 2^LAST the largest ratio, over the levels, of the squared error e^2_m to that of a
lattice made component by component for the level m alone. With x_k = {k z / N},

    e^2_m = -1 + 1/N sum_k prod_j (1 + gamma_j omega({k z_j / N})),

the mean square error over a random shift in a space of product weights gamma_j, for integrands
whose cosine coefficients fall like 1 / h (`omega` ~ B2) or 1 / h^2 (~ B4): under the tent transform
a cosine series is a Fourier series, with no condition on the boundary (Hickernell 2002; Dick, Nuyens
and Pillichshammer 2014). Weights: tune_lattice.py compares some at true errors of separation of
variables: they matter little, a tenth of the error. The kernel matters at large N: in few dimensions
e^2 of B4 is soon below what double precision tells apart, and the lattices that it chose had 1.6 times
the error of B2's at n = 9 and 2^17 points. Beyond some 64 dimensions random generators were as good
at n = 199: the table is long enough.
"""

import sys
from pathlib import Path

import numpy as np

HEADER = Path(__file__).parent.parent / "lattice_table.h"
DIMENSIONS = 256
FIRST, LAST = 6, 20  # levels m: N = 2^m points
# Transforms round e^2, a difference from 1, by less than ROUNDING: candidates closer than that count
# as equal, and e^2 far below FLOOR as zero, so that the table does not depend on the machine.
FLOOR, ROUNDING = 1e-13, 1e-15
WEIGHTS = ("B2", "0.2j^-1")


def omega(kernel, x):
    """2 pi^2 B2(x), or -(2 pi)^4 / 4! B4(x): sums over h != 0 of exp(2 pi i h x) / h^2, / h^4."""
    if kernel == "B2":
        return 2 * np.pi**2 * (x * x - x + 1 / 6)
    y = x * (1 - x)
    return (2 * np.pi) ** 4 / 24 * (1 / 30 - y * y)


def gammas(name, count):
    """Weights by name: "j^-2", "0.3j^-2", "0.8**j"."""
    j = np.arange(1, count + 1, dtype=float)
    if "**j" in name:
        return float(name[: -len("**j")]) ** j
    factor, power = name.split("j^")
    return float(factor or 1) * j ** float(power)


class Level:
    """N = 2^m: the sums over odd k, as a function of z, are a correlation in the exponent of 5.

    The odd numbers mod 2^m are +-5^i. Everything is even in k, so i = 0 .. 2^(m-2) - 1 stands for
    all of them; p[i] is the product over the components so far at k = 5^i.
    """

    def __init__(self, m, kernel):
        self.m, self.size = m, max(1, 2 ** (m - 2))
        power = np.ones(self.size, dtype=np.int64)
        step, done = 5, 1
        while done < self.size:  # 5^(i + done) = 5^i 5^done
            power[done : 2 * done] = power[:done] * step % 2**m
            step, done = step * step % 2**m, 2 * done
        self.power = power
        self.omega = omega(kernel, power / 2.0**m)
        self.transform = np.fft.rfft(self.omega)
        self.p = np.ones(self.size)
        self.multiplicity = 1 if m <= 1 else 2  # +-5^i are one number below 4

    def sums(self):
        """Over odd k of omega(k z / N) p_k, at z = 5^g."""
        if self.size < 4:
            g = np.arange(self.size)
            table = self.omega[(g[:, None] + g[None, :]) % self.size]
            return self.multiplicity * table @ self.p
        correlation = np.fft.irfft(self.transform * np.fft.rfft(self.p).conj(), self.size)
        return self.multiplicity * correlation

    def multiply(self, gamma, g):
        """Component z = 5^g joins the products."""
        self.p *= 1 + gamma * np.roll(self.omega, -(g % self.size))


class Search:
    """Component by component for the levels first .. last."""

    def __init__(self, kernel, weights, first, last):
        self.kernel, self.weights, self.first, self.last = kernel, weights, first, last
        self.levels = [Level(m, kernel) for m in range(1, last + 1)]
        self.zero = float(omega(kernel, np.float64(0)))
        self.p0 = 1.0  # product at k = 0
        self.square = np.zeros(last + 1)  # e^2 of each level

    def candidates(self, gamma):
        """e^2 [candidate] of each level from first on, were z = 5^g the next component."""
        total = np.full(1, self.p0 * self.zero)  # over k < 2^m, grows with m
        for level in self.levels:
            odd = level.sums()
            total = np.tile(total, len(odd) // len(total)) + odd
            if level.m >= self.first:
                yield level.m, self.square[level.m] + gamma * total / 2.0**level.m

    def take(self, gamma, g):
        for m, square in self.candidates(gamma):
            self.square[m] = square[g % len(square)]
        for level in self.levels:
            level.multiply(gamma, g)
        self.p0 *= 1 + gamma * self.zero


def smallest(values, error, power, modulus):
    """Exponent of the best candidate, of those that are equal (by symmetry) the one of smallest z;
    `error` is the relative one of the values."""
    tied = np.flatnonzero(values <= values.min() * (1 + 1e-9 + error))
    z = np.minimum(power[tied], modulus - power[tied])
    return int(tied[np.argmin(z)])


def best_alone(kernel, weights, m):
    """e^2 after each component of the lattice made for the level m alone."""
    search, out = Search(kernel, weights, m, m), []
    for gamma in weights:
        ((_, square),) = search.candidates(gamma)
        square = square + FLOOR
        error = ROUNDING / square.min()
        search.take(gamma, smallest(square, error, search.levels[-1].power, 2**m))
        out.append(search.square[m])
    return np.array(out)


def construct(kernel, weights, first, last):
    """Generators z [s], odd, below 2^last; e^2 [last + 1, s] after each component; the best alone."""
    alone = {m: best_alone(kernel, weights, m) for m in range(first, last + 1)}
    search = Search(kernel, weights, first, last)
    power = search.levels[-1].power
    z, squares = [], []
    for j, gamma in enumerate(weights):
        worst = np.zeros(1)
        for m, square in search.candidates(gamma):
            ratio = (square + FLOOR) / (alone[m][j] + FLOOR)
            worst = np.maximum(np.tile(worst, len(ratio) // len(worst)), ratio)
        error = ROUNDING / (min(alone[m][j] for m in alone) + FLOOR)
        g = smallest(worst, error, power, 2**last)
        search.take(gamma, g)
        z.append(int(min(power[g], 2**last - power[g])))
        squares.append(search.square.copy())
    return z, np.array(squares).T, alone


def squared_error(kernel, weights, z, m):
    """e^2 of given generators, straight from its definition."""
    k = np.arange(2**m, dtype=np.int64)
    product = np.ones(2**m)
    for gamma, generator in zip(weights, z, strict=True):
        product *= 1 + gamma * omega(kernel, k * generator % 2**m / 2.0**m)
    return product.mean() - 1


def report(weights, z, squares, alone):
    """Lines of the table of root worst-case errors, and of the ratio to the best for one level."""
    columns = [n for n in (2, 5, 10, 20, 50, 100, 256) if n <= len(z)]

    def worse(m, n):
        return ((squares[m, n - 1] + FLOOR) / (alone[m][n - 1] + FLOOR)) ** 0.5

    lines = ["points  " + "".join(f"{f'{n} dims':>18}" for n in columns)]
    for m in range(FIRST, LAST + 1, 2):
        cells = [f"{max(squares[m, n - 1], 0) ** 0.5:10.2e} ({worse(m, n):.3f})" for n in columns]
        lines.append(f"2^{m:<6}" + "".join(f"{c:>18}" for c in cells))
    return lines


def header(z, lines):
    words = [f"{v:#x}u" for v in z]
    rows = [", ".join(words[i : i + 10]) for i in range(0, len(words), 10)]
    return (
        "// Written by csrc/math/fits/fit_lattice.py; do not edit.\n// clang-format off\n"
        "#pragma once\n\n#include <cstdint>\n\n"
        '#include "config.h"\n\n'
        "namespace mvnrob::math {\ninline namespace MVNROB_ISA {\nnamespace tables {\n\n"
        f"// Generators mod 2^{LAST} of an embedded lattice sequence of 2^{FIRST} to 2^{LAST} points,"
        f" kernel {WEIGHTS[0]},\n// weights {WEIGHTS[1]}."
        " Root of the mean square error over a random shift, and in brackets its ratio\n"
        "// to that of the lattice made for this number of points alone:\n//\n"
        + "".join(f"//   {line}\n" for line in lines)
        + f"inline constexpr int kLatticeBits = {LAST};\n"
        f"inline constexpr int kLatticeDimensions = {len(z)};\n"
        "MVNROB_HD_FN uint32_t lattice_generator(int j) {\n"
        "  static constexpr uint32_t z[] = {\n      "
        + ",\n      ".join(rows)
        + "};\n  return z[j];\n}\n\n"
        "}  // namespace tables\n}  // namespace MVNROB_ISA\n}  // namespace mvnrob::math\n"
    )


def main(out):
    kernel, weights = WEIGHTS[0], gammas(WEIGHTS[1], DIMENSIONS)
    z, squares, alone = construct(kernel, weights, FIRST, LAST)
    for m in (FIRST, 10, 14):  # the transforms against the definition
        direct = squared_error(kernel, weights[:30], z[:30], m)
        assert abs(direct - squares[m, 29]) < 1e-9 * abs(direct), (m, direct, squares[m, 29])
    lines = report(weights, z, squares, alone)
    print("\n".join(lines))
    out.write_text(header(z, lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HEADER)
