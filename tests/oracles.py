"""Exact multivariate normal probabilities for special covariances, in float64.

Each function returns `Answer(prob, complement, abs_err)`: prob = P(lower <= X <= upper), the
complement computed on its own where cancellation matters, and a bound on the absolute error of
both. abs_err comes from repeating the quadrature on a finer grid; nothing here samples.
None of these functions shares an algorithm with mvnrob (no separation of variables).
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import special

# Mass of N(0, 1) outside +-REACH is 1e-18 on each side: far below every error stated here.
REACH = 8.75
# Rounding of sums of a few thousand float64 terms of size <= 1.
FLOOR = 2e-12


class Answer(NamedTuple):
    prob: float
    complement: float
    abs_err: float


class NotConverged(RuntimeError):
    """An oracle could not reach its accuracy; the problem must be dropped, not used."""


def interval(lower, upper):
    """P(lower <= Z <= upper) of a standard normal, without cancellation in the upper tail."""
    lower, upper = np.broadcast_arrays(lower, upper)
    flip = lower > 0
    a = np.where(flip, -upper, lower)
    b = np.where(flip, -lower, upper)
    return np.maximum(special.ndtr(b) - special.ndtr(a), 0.0)


def log_interval(lower, upper):
    """log P(lower <= Z <= upper), accurate when it is close to 0 as well as in the tails."""
    if np.all(np.isneginf(lower)):
        return special.log_ndtr(upper)
    outside = special.ndtr(lower) + special.ndtr(-np.asarray(upper))
    inside = interval(lower, upper)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(outside < 0.5, np.log1p(-np.minimum(outside, 0.5)), np.log(inside))


@lru_cache
def _rule(order):
    return np.polynomial.legendre.leggauss(order)


def gauss_legendre(a, b, panels, order=16):
    """Nodes and weights of a composite Gauss-Legendre rule on [a, b]."""
    x, w = _rule(order)
    edges = np.linspace(a, b, panels + 1)
    half = np.diff(edges) / 2
    mid = (edges[1:] + edges[:-1]) / 2
    return (mid[:, None] + half[:, None] * x).ravel(), (half[:, None] * w).ravel()


def density(x):
    return np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)


def _settle(evaluate, start, factor, limit, accuracy=1e-9):
    """Calls evaluate(size) with growing size until two answers agree; keeps the later one."""
    size, last = start, None
    while size <= limit:
        now = evaluate(size)
        if last is not None:
            gap = max(abs(now[0] - last[0]), abs(now[1] - last[1]))
            if gap < accuracy:
                prob, complement = (min(max(v, 0.0), 1.0) for v in now)
                return Answer(prob, complement, gap + FLOOR)
        last, size = now, int(np.ceil(size * factor))
    raise NotConverged(f"quadrature did not settle: {last} then {now}")


def independent(lower, upper):
    """Standard normals without correlation: the product of the intervals."""
    log_p = float(np.sum(log_interval(lower, upper)))
    return Answer(float(np.exp(log_p)), float(-np.expm1(log_p)), FLOOR)


def nested(cov, lower, upper):
    """n <= 3, positive definite: conditional densities in turn, the last one in closed form.

    P = int phi(y1) int phi(y2) [Phi(b3(y1, y2)) - Phi(a3(y1, y2))] dy2 dy1 with X = L y.
    """
    n = len(cov)
    if n == 1:
        s = np.sqrt(cov[0, 0])
        return independent(lower / s, upper / s)
    chol = np.linalg.cholesky(cov)
    a = np.clip(lower[0] / chol[0, 0], -REACH, REACH)
    b = np.clip(upper[0] / chol[0, 0], -REACH, REACH)

    def evaluate(panels):
        y, w = gauss_legendre(a, b, panels)
        w = w * density(y)
        if n == 2:
            lo = (lower[1] - chol[1, 0] * y) / chol[1, 1]
            hi = (upper[1] - chol[1, 0] * y) / chol[1, 1]
            prob = float(w @ interval(lo, hi))
            return prob, 1 - prob
        lo = np.clip((lower[1] - chol[1, 0] * y) / chol[1, 1], -REACH, REACH)
        hi = np.clip((upper[1] - chol[1, 0] * y) / chol[1, 1], -REACH, REACH)
        t, v = gauss_legendre(0.0, 1.0, panels)
        y2 = lo[:, None] + (hi - lo)[:, None] * t
        w2 = (hi - lo)[:, None] * v * density(y2)
        m = chol[2, 0] * y[:, None] + chol[2, 1] * y2
        inner = interval((lower[2] - m) / chol[2, 2], (upper[2] - m) / chol[2, 2])
        prob = float(w @ np.sum(w2 * inner, axis=1))
        return prob, 1 - prob

    return _settle(evaluate, 12, 2, 200 if n == 3 else 4000)


def one_factor(load, noise, lower, upper):
    """X_i = load_i Y + noise_i e_i: one integral over Y (Dunnett & Sobel 1955)."""
    load, noise = np.asarray(load), np.asarray(noise)

    def evaluate(panels):
        y, w = gauss_legendre(-REACH, REACH, panels)
        w = w * density(y)
        prob = complement = 0.0
        for at in range(0, len(y), 512):
            shift = load * y[at : at + 512, None]
            logs = log_interval((lower - shift) / noise, (upper - shift) / noise).sum(1)
            prob += float(w[at : at + 512] @ np.exp(logs))
            complement += float(w[at : at + 512] @ -np.expm1(logs))
        return prob, complement

    return _settle(evaluate, 12, 2, 800)


def negative_factor(load, lower, upper):
    """Unit variances and correlations -load_i load_j, i != j (imaginary loading of one factor).

    With c_i = sqrt(1 + load_i^2): P = int phi(y) prod [Phi((u_i - i load_i y) / c_i) - ...] dy.
    PSD while sum load_i^2 / (1 + load_i^2) <= 1; at equality the covariance is singular and the
    integrand decays like y^-n only, so that case needs n of 8 and more.
    """
    load = np.asarray(load)
    scale = np.sqrt(1 + load**2)
    room = 1 - np.sum(load**2 / scale**2)
    reach = REACH / np.sqrt(room) if room > 0.02 else 60.0

    def evaluate(panels):
        y, w = gauss_legendre(0.0, reach, panels)
        shift = 1j * load * y[:, None]
        hi = (upper - shift) / scale
        if np.all(np.isneginf(lower)):
            logs = special.log_ndtr(hi).sum(1)
        else:
            finite = np.where(np.isneginf(lower), 0.0, lower)
            low = special.ndtr((finite - shift) / scale)
            logs = np.log(special.ndtr(hi) - np.where(np.isneginf(lower), 0.0, low)).sum(1)
        terms = np.exp(logs - 0.5 * y * y) / np.sqrt(2 * np.pi)
        prob = 2 * float(w @ terms.real)
        return prob, 1 - prob

    return _settle(evaluate, 24, 2, 1600)


def simplex(upper):
    """X_i = sqrt(n / (n - 1)) (Z_i - mean Z), so that sum X_i = 0: rank n - 1, n >= 8.

    Unit variances and correlations -1 / (n - 1): the singular end of `negative_factor`.
    """
    n = len(upper)
    load = np.full(n, 1 / np.sqrt(n - 1.0))
    return negative_factor(load, np.full(n, -np.inf), upper)


def two_factor(load, noise, lower, upper):
    """X_i = load_i . Y + noise_i e_i with Y in R^2: trapezoid rule on a square grid.

    The integrand is analytic with Gaussian decay, for which the trapezoid rule converges
    geometrically in 1 / step.
    """
    load, noise = np.asarray(load), np.asarray(noise)

    def evaluate(points):
        grid = np.linspace(-REACH, REACH, points)
        w = density(grid) * (grid[1] - grid[0])
        prob = complement = 0.0
        for y, wy in zip(grid, w, strict=True):
            shift = load[:, 0] * y + load[:, 1] * grid[:, None]
            logs = log_interval((lower - shift) / noise, (upper - shift) / noise).sum(1)
            prob += wy * float(w @ np.exp(logs))
            complement += wy * float(w @ -np.expm1(logs))
        return prob, complement

    return _settle(evaluate, 61, 1.3, 400)


def hierarchy(top, group, within, noise, lower, upper):
    """X_i = top_i Y + within_i W_group(i) + noise_i e_i: a tree of classes.

    Given Y the groups are independent, given W_g the members are: two nested trapezoid rules,
    the inner one shared by all members of a group.
    """
    groups = [np.flatnonzero(group == g) for g in np.unique(group)]

    def evaluate(points):
        grid = np.linspace(-REACH, REACH, points)
        w = density(grid) * (grid[1] - grid[0])
        log_p = np.zeros(points)
        for g in groups:
            # shift [y, w, member]
            shift = top[g] * grid[:, None, None] + within[g] * grid[None, :, None]
            logs = log_interval((lower[g] - shift) / noise[g], (upper[g] - shift) / noise[g])
            logs = logs.sum(2)
            outside = -np.expm1(logs) @ w
            inside = np.exp(logs) @ w
            with np.errstate(divide="ignore"):
                log_p += np.where(
                    outside < 0.5, np.log1p(-np.minimum(outside, 0.5)), np.log(inside)
                )
        return float(w @ np.exp(log_p)), float(w @ -np.expm1(log_p))

    return _settle(evaluate, 61, 1.3, 300)


def markov(rho, lower, upper):
    """X_1 = e_1, X_{i+1} = rho_i X_i + sqrt(1 - rho_i^2) e_{i+1}: a chain of 1-D transfers."""
    rho = np.asarray(rho)
    lo = np.clip(lower, -REACH, REACH)
    hi = np.clip(upper, -REACH, REACH)
    sharp = np.sqrt(1 - np.max(rho**2)) if len(rho) else 1.0

    def evaluate(points):
        x, w = _rule(points)
        middle, half = (lo + hi) / 2, (hi - lo) / 2
        nodes = middle[0] + half[0] * x
        flow = density(nodes)
        for i, r in enumerate(rho):
            s = np.sqrt(1 - r * r)
            mass = flow * w * half[i]
            step = middle[i + 1] + half[i + 1] * x
            flow = density((step[:, None] - r * nodes) / s) @ mass / s
            nodes = step
        prob = float(np.sum(flow * w) * half[-1])
        return prob, 1 - prob

    start = int(30 + 2 * REACH / sharp)
    answer = _settle(evaluate, start, 1.4, 2000)
    return answer._replace(abs_err=answer.abs_err + 1e-15 * len(lo))


def rank_one(load, lower, upper):
    """X_i = load_i Y: an interval of Y."""
    load = np.asarray(load)
    if np.any(load == 0):
        raise ValueError("rank_one: loadings must not be zero")
    with np.errstate(invalid="ignore"):
        a = np.where(load > 0, lower, upper) / load
        b = np.where(load > 0, upper, lower) / load
    a, b = np.max(a), np.min(b)
    if a >= b:
        return Answer(0.0, 1.0, FLOOR)
    return Answer(float(interval(a, b)), float(special.ndtr(a) + special.ndtr(-b)), FLOOR)


def _half_spaces(rows, lower, upper, box=10.0):
    """Unit normals and offsets of {e: lower <= rows e <= upper} cut to a box; no duplicates."""
    rank = rows.shape[1]
    keep_hi, keep_lo = np.isfinite(upper), np.isfinite(lower)
    normal = np.concatenate([rows[keep_hi], -rows[keep_lo], np.eye(rank), -np.eye(rank)])
    offset = np.concatenate([upper[keep_hi], -lower[keep_lo], np.full(2 * rank, box)])
    length = np.linalg.norm(normal, axis=1)
    if np.any(length == 0):
        raise ValueError("rows must not be zero")
    normal, offset = normal / length[:, None], offset / length
    order = np.argsort(offset, kind="stable")
    normal, offset = normal[order], offset[order]
    kept = []
    for i in range(len(offset)):  # parallel rows: the nearest one rules
        if not kept or np.max(normal[kept] @ normal[i]) < 1 - 1e-15:
            kept.append(i)
    return normal[kept], offset[kept]


def _clip(polygon, normal, offset):
    """The part of a convex polygon [k, 2] (vertices in order) with normal . x <= offset."""
    slack = offset - polygon @ normal
    inside = slack >= 0
    if inside.all():
        return polygon
    if not inside.any():
        return polygon[:0]
    out = []
    for i in range(len(polygon)):
        j = (i + 1) % len(polygon)
        if inside[i]:
            out.append(polygon[i])
        if inside[i] != inside[j]:
            t = slack[i] / (slack[i] - slack[j])
            out.append(polygon[i] + t * (polygon[j] - polygon[i]))
    return np.array(out)


_SQUARE = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def rank_two(rows, lower, upper):
    """X = rows e with e in R^2: Gaussian measure of a polygon, edge by edge, in Owen's T.

    The field e (1 - exp(-r^2/2)) / (2 pi r^2) has the normal density as its divergence, so an
    edge at distance h seen under angles a0..a1 from its foot adds
    (a1 - a0) / (2 pi) - T(h, tan a1) + T(h, tan a0), with the sign of h.
    """
    normal, offset = _half_spaces(np.asarray(rows), lower, upper)
    prob = 0.0
    for i, (n, h) in enumerate(zip(normal, offset, strict=True)):
        along = np.array([-n[1], n[0]])
        rate = normal @ along
        room = offset - h * (normal @ n)
        other = np.arange(len(offset)) != i
        if np.any(other & (np.abs(rate) < 1e-15) & (room < 0)):
            continue
        up, down = other & (rate > 1e-15), other & (rate < -1e-15)
        end = np.min(room[up] / rate[up])
        begin = np.max(room[down] / rate[down])
        if begin >= end or h == 0:
            continue
        d = abs(h)
        part = (np.arctan2(end, d) - np.arctan2(begin, d)) / (2 * np.pi)
        part -= special.owens_t(d, end / d) - special.owens_t(d, begin / d)
        prob += np.sign(h) * part
    prob = float(min(max(prob, 0.0), 1.0))
    return Answer(prob, 1 - prob, 1e-11)


def rank_three(rows, lower, upper):
    """X = rows e with e in R^3: Gaussian measure of a polyhedron, facet by facet, edge by edge.

    The field e F(r) / (4 pi r^3), F the chi_3 distribution function, has the normal density as its
    divergence. On a facet at signed distance h, in polar coordinates about its foot, the radial
    integral is closed: (erf(h/sqrt2) - h erf(R/sqrt2) / R) / (4 pi), R the distance of the edge
    point. An edge at distance p from the foot is run through as s = p sinh t, d angle = dt / cosh t.
    """
    normal, offset = _half_spaces(np.asarray(rows), lower, upper)
    x, w = _rule(24)
    prob = 0.0
    for i, (n, h) in enumerate(zip(normal, offset, strict=True)):
        # An orthonormal basis of the facet's plane.
        first = np.cross(n, np.eye(3)[np.argmin(np.abs(n))])
        first /= np.linalg.norm(first)
        basis = np.stack([first, np.cross(n, first)])
        plane = normal @ basis.T
        room = offset - h * (normal @ n)
        length = np.linalg.norm(plane, axis=1)
        reach = np.where(length > 1e-12, room / np.maximum(length, 1e-12), np.inf)
        polygon = 20.0 * _SQUARE
        for j in np.argsort(reach):
            if j != i and len(polygon):
                if length[j] <= 1e-12:
                    polygon = polygon if room[j] >= 0 else polygon[:0]
                else:
                    polygon = _clip(polygon, plane[j], room[j])
        if len(polygon) < 3:
            continue
        for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            side = np.linalg.norm(b - a)
            if side < 1e-14:
                continue
            along = (b - a) / side
            p = a[0] * along[1] - a[1] * along[0]  # signed distance of the foot, > 0 inside
            if abs(p) < 1e-14:
                continue
            t0, t1 = np.arcsinh(np.array([a @ along, b @ along]) / abs(p))
            panels = int(np.ceil((t1 - t0) / 0.5))
            edges = np.linspace(t0, t1, panels + 1)
            half = (edges[1] - edges[0]) / 2
            t = ((edges[1:] + edges[:-1]) / 2)[:, None] + half * x
            far = np.sqrt(h * h + (p * np.cosh(t)) ** 2)
            core = special.erf(h / np.sqrt(2)) - h * special.erf(far / np.sqrt(2)) / far
            prob += np.sign(p) * half * float(np.sum(w * core / np.cosh(t))) / (4 * np.pi)
    prob = float(min(max(prob, 0.0), 1.0))
    return Answer(prob, 1 - prob, 1e-10)


def joined(answers):
    """Independent blocks: the product of their probabilities."""
    prob = float(np.prod([a.prob for a in answers]))
    with np.errstate(divide="ignore"):
        complement = float(-np.expm1(np.sum([np.log1p(-min(a.complement, 1)) for a in answers])))
    return Answer(prob, complement, sum(a.abs_err for a in answers))
