"""Weighted minimax fits by rational Remez exchange in multiple precision (mpmath)."""

from itertools import pairwise

from mpmath import cos, lu_solve, matrix, mpf, pi


def horner(coefs, x):
    """Value of sum_j coefs[j] x^j."""
    total = mpf(0)
    for c in reversed(coefs):
        total = total * x + c
    return total


def _interpolate(f, lo, hi, m, n):
    """p/q (q(0) = 1) through f at Chebyshev points: the start of the exchange."""
    count = m + n + 1
    a, b = matrix(count, count), matrix(count, 1)
    for i in range(count):
        x = (lo + hi) / 2 - (hi - lo) / 2 * cos(pi * (2 * i + 1) / (2 * count))
        for j in range(m + 1):
            a[i, j] = x**j
        for j in range(1, n + 1):
            a[i, m + j] = -f(x) * x**j
        b[i] = f(x)
    sol = lu_solve(a, b)
    return [sol[j] for j in range(m + 1)], [mpf(1)] + [sol[m + j] for j in range(1, n + 1)]


def _level(f, weight, nodes, m, n, level):
    """p, q and E with p - f q = (-1)^i E q / weight at the nodes, by Newton's method on E.

    For a given E the unknowns (p, q, slack) solve a linear system; the slack's zero is sought.
    """
    size = m + n + 2
    fs = [f(x) for x in nodes]
    ws = [weight(x) for x in nodes]

    def slack(e):
        a, b = matrix(size, size), matrix(size, 1)
        for i, x in enumerate(nodes):
            sign = mpf(-1) ** i / ws[i]
            for j in range(m + 1):
                a[i, j] = x**j
            for j in range(1, n + 1):
                a[i, m + j] = -(fs[i] + sign * e) * x**j
            a[i, size - 1] = sign
            b[i] = fs[i] + sign * e
        return lu_solve(a, b)

    scale = max(abs(v) for v in fs) * max(ws)
    e0, s0 = level, None
    s0 = slack(e0)
    e1 = e0 - s0[size - 1] if s0[size - 1] != 0 else e0
    for _ in range(50):
        s1 = slack(e1)
        step = s1[size - 1] - s0[size - 1]
        if step == 0 or abs(e1 - e0) <= mpf(10) ** -14 * abs(e1) + scale * mpf(10) ** -40:
            break
        e0, s0, e1 = e1, s1, e1 - s1[size - 1] * (e1 - e0) / step
    sol = slack(e1)
    return (
        [sol[j] for j in range(m + 1)],
        [mpf(1)] + [sol[m + j] for j in range(1, n + 1)],
        e1,
    )


def _peaks(err, edges, samples):
    """One extremum of err per run of equal sign, on a grid that is dense near every edge."""
    grid = []
    for u, v in pairwise(edges):
        grid += [u + (v - u) * (1 - cos(pi * k / samples)) / 2 for k in range(samples)]
    grid.append(edges[-1])
    peaks = []
    for x in grid:
        v = err(x)
        if peaks and (peaks[-1][1] > 0) == (v > 0):
            if abs(v) > abs(peaks[-1][1]):
                peaks[-1] = (x, v)
        else:
            peaks.append((x, v))
    return peaks


def _reduce(peaks, count):
    """Drop the smallest extrema, keeping the signs alternating, until count are left."""
    peaks = list(peaks)
    while len(peaks) > count:
        k = min(range(len(peaks)), key=lambda i: abs(peaks[i][1]))
        if k in (0, len(peaks) - 1):
            peaks.pop(k)
        elif len(peaks) == count + 1:
            peaks.pop(0 if abs(peaks[0][1]) < abs(peaks[-1][1]) else -1)
        else:
            keep = k - 1 if abs(peaks[k - 1][1]) > abs(peaks[k + 1][1]) else k + 1
            drop = k + 1 if keep == k - 1 else k - 1
            for i in sorted((k, drop), reverse=True):
                peaks.pop(i)
    return peaks


def remez(f, weight, lo, hi, m, n, rounds=30, samples=12, tol=1e-3):
    """Best p/q (degrees m, n; q(0) = 1) for max |weight (p/q - f)| on [lo, hi].

    Returns p, q (ascending) and the worst weighted error on the search grid.
    """
    lo, hi = mpf(lo), mpf(hi)
    count = m + n + 2
    p, q = _interpolate(f, lo, hi, m, n)
    edges = [(lo + hi) / 2 - (hi - lo) / 2 * cos(pi * i / count) for i in range(count + 1)]
    level, best = mpf(0), None
    for _ in range(rounds):

        def err(x, p=p, q=q):
            return weight(x) * (horner(p, x) / horner(q, x) - f(x))

        peaks = _peaks(err, edges, samples)
        worst = max(abs(v) for _, v in peaks)
        if best is None or worst < best[2]:
            best = (p, q, worst)
        if len(peaks) < count:
            break
        peaks = _reduce(peaks, count)
        if worst - min(abs(v) for _, v in peaks) <= tol * worst:
            break
        nodes = [x for x, _ in peaks]
        p, q, level = _level(f, weight, nodes, m, n, level)
        mids = [(u + v) / 2 for u, v in pairwise(nodes)]
        edges = sorted({lo, hi, *nodes, *mids})
    return best
