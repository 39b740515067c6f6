"""Multiple-precision references (mpmath) for the functions of csrc/math."""

import functools

import mpmath as mp

mp.mp.dps = 40
ROOT_TWO = mp.sqrt(2)


@functools.lru_cache(None)
def ndtr(x):
    """Phi(x) for a float or mpf."""
    return mp.erfc(-mp.mpf(x) / ROOT_TWO) / 2


def _ndtri_tail(log_p):
    """-Phi^-1(exp(log_p)), log_p <= -ln 2: Newton's method on ln Phi(-x) = log_p."""
    x = mp.sqrt(-2 * log_p)
    x = x - mp.log(x * mp.sqrt(2 * mp.pi) + 1) / (x + 1)
    for _ in range(100):
        tail = ndtr(-x)
        step = (mp.log(tail) - log_p) * tail / (mp.exp(-x * x / 2) / mp.sqrt(2 * mp.pi))
        x += step
        if abs(step) < mp.mpf(10) ** -36 * (1 + abs(x)):
            return x
    raise ArithmeticError(f"no convergence at log p = {log_p}")


@functools.lru_cache(None)
def ndtri_pair(p, q):
    """Phi^-1(p), q = 1 - p given so that neither loses digits."""
    return -_ndtri_tail(mp.log(p)) if p <= q else _ndtri_tail(mp.log(q))


def ndtri(p):
    """Phi^-1(p) for a float in (0, 1)."""
    p = mp.mpf(p)
    return ndtri_pair(p, 1 - p)


def step(a, b, w):
    """Phi(b) - Phi(a), its complement, and Phi^-1(Phi(a) + w (Phi(b) - Phi(a)))."""
    w = mp.mpf(w)
    low, high = ndtr(a), ndtr(b)
    upper_low, upper_high = ndtr(-mp.mpf(a)), ndtr(-mp.mpf(b))
    e = high - low if a + b <= 0 else upper_low - upper_high
    p = (1 - w) * low + w * high
    q = (1 - w) * upper_low + w * upper_high
    return e, low + upper_high, ndtri_pair(p, q)


@functools.lru_cache(None)
@mp.workdps(30)
def owens_t(h, a):
    h, a = mp.mpf(h), mp.mpf(a)
    ends = [a * i / 8 for i in range(9)]
    return mp.quad(lambda x: mp.exp(-h * h * (1 + x * x) / 2) / (1 + x * x), ends) / (2 * mp.pi)


@functools.lru_cache(None)
@mp.workdps(30)
def bvn_upper(h, k, rho):
    """P(X > h, Y > k) by conditioning on X: another formula than the header's."""
    h, k, rho = mp.mpf(h), mp.mpf(k), mp.mpf(rho)
    if rho == 1:
        return ndtr(-max(h, k))
    if rho == -1:
        return max(mp.mpf(0), ndtr(-h) - ndtr(k))
    s = mp.sqrt((1 - rho) * (1 + rho))
    ends = {h, h + 40}
    near = [h + t for t in (0.25, 1, 3)] + [mp.mpf(t) for t in (-8, -4, -2, 0, 2, 4, 8)]
    if rho != 0:
        near += [(k + t * s) / rho for t in (-12, -6, -3, -1, 0, 1, 3, 6, 12)]
    ends |= {x for x in near if h < x < h + 40}

    def density(x):
        return mp.exp(-x * x / 2) * ndtr.__wrapped__((rho * x - k) / s) / mp.sqrt(2 * mp.pi)

    return mp.quad(density, sorted(ends))


@functools.lru_cache(None)
def tvn_cdf(b1, b2, b3, r12, r13, r23):
    """P(X_i <= b_i) of a correlation matrix that is positive definite as given.

    Plackett's identity along r12 = r12 sin t, r13 = r13 sin t in 40 digits, so that nothing that
    the header guards against can happen; b2, b3 must not be the pair nearest to +-1.
    """
    b1, b2, b3, r12, r13, r23 = map(mp.mpf, (b1, b2, b3, r12, r13, r23))
    gap = (1 - r23) * (1 + r23)
    q = r12**2 + r13**2 - 2 * r12 * r13 * r23
    if gap - q <= 0:
        raise ValueError("not positive definite")

    def term(b2, b3, r12, r13, sine, cosine):
        r, s = r12 * sine, r13 * sine
        v = 1 - r * r
        num = b3 * v - (s - r * r23) * b1 - (r23 - r * s) * b2
        inner = ndtr.__wrapped__(num / mp.sqrt(v * (gap - q * sine * sine)))
        return (
            r12
            * mp.exp(-(b1 * b1 - 2 * r * b1 * b2 + b2 * b2) / (2 * v))
            * inner
            * (cosine / mp.sqrt(v))
        )

    def f(u):
        sine, cosine = mp.cos(u), mp.sin(u)
        return term(b2, b3, r12, r13, sine, cosine) + term(b3, b2, r13, r12, sine, cosine)

    ends = [mp.mpf(0)] + [mp.mpf(10) ** -k for k in range(18, 0, -1)] + [mp.mpf("0.6"), mp.pi / 2]
    path = mp.quad(f, ends) / (2 * mp.pi)
    return ndtr(b1) * bvn_upper(-b2, -b3, r23) + path
