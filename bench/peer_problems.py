"""Problems of bench/bench_peers.py: n variables, bands of p, answers that no sampler gave or that are checked.

- "hierarchy, few" and "hierarchy, flat": classes in groups of about ten under a common cause, a few
  rivals that matter or all of them; an integral of integrals by the trapezoid rule, for any n and for
  every p in TARGETS. More than one factor, so that no exact form answers them.
- real and trained classifiers of bench/classifiers.py with sampled, checked reference answers:
  "digits" (n = 9), "networks", "singular" (softmax regression on few features), "random rows".
- "EfficientNet-Lite0" (n = 999): photographs, from the covariances that `bench screening --cache` keeps.
"""

import json
import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from bench import classifiers, harness

TARGETS = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
# Where one band of p ends and the next begins; each is named for its target.
EDGES = (0.03, 0.25, 0.75, 0.95, 0.995, 0.9995)
GROUP = 10
# Members of a group have one of these variances from the common cause and from the group's.
SHARES = ((0.3, 0.2), (0.45, 0.3), (0.6, 0.15))
LEAST_N, MOST_N = 6, 4095


@dataclass(frozen=True, eq=False)
class Problem:
    kind: str
    upper: np.ndarray
    cov: np.ndarray
    prob: float
    error: float  # 99 %, of prob

    @property
    def band(self):
        return TARGETS[int(np.searchsorted(EDGES, self.prob))]


class Hierarchy:
    """P(X <= c margins), X_i = top Y + within W_group(i) + noise e_i, for any c.

    Margins come in steps of a tenth, so that a table of log Phi over few margins and all nodes serves
    every variable.
    """

    def __init__(self, group, share, margins):
        self.margins = np.unique(margins)
        which = np.searchsorted(self.margins, margins)
        # How often each margin occurs in each group [groups, margins].
        self.counts = np.zeros((group.max() + 1, len(self.margins)))
        np.add.at(self.counts, (group, which), 1)
        self.share = share  # [groups], index into SHARES

    def log_parts(self, c, nodes):
        """log P given Y [nodes], and the rule's weights."""
        y = np.linspace(-8.5, 8.5, nodes)
        w = np.exp(-y * y / 2) / math.sqrt(2 * math.pi) * (y[1] - y[0])
        log_p = np.zeros(nodes)
        for kind, (top, within) in enumerate(SHARES):
            given = math.sqrt(top) * y[:, None] + math.sqrt(within) * y
            noise = math.sqrt(1 - top - within)
            table = special.log_ndtr((c * self.margins[:, None, None] - given) / noise)
            for counts in self.counts[self.share == kind]:
                used = np.flatnonzero(counts)
                with np.errstate(divide="ignore"):  # underflow far below
                    log_p += np.log(np.exp(np.tensordot(counts[used], table[used], 1)) @ w)
        return log_p, w

    def complement(self, c, nodes=97):
        log_p, w = self.log_parts(c, nodes)
        return float(-np.expm1(np.minimum(log_p, 0)) @ w)

    def prob(self, c, nodes=97):
        log_p, w = self.log_parts(c, nodes)
        return float(np.exp(log_p) @ w)


def hierarchy(kind, n, target, rng):
    """One hierarchy with p at the target; its answer from two rules that agree."""
    groups = max(2, n // GROUP)
    # Two groups of at least three at the smallest n.
    group = rng.permutation(np.arange(n) % groups)
    share = rng.integers(0, len(SHARES), groups)
    margins = 1 + 0.15 * rng.gamma(2.0, size=n)
    if kind == "hierarchy, few":
        near = rng.choice(n, size=min(n, int(rng.integers(3, 9))), replace=False)
        near_margins = margins[near]
        margins = rng.uniform(2.0, 6.0, n)
        margins[near] = near_margins
    margins = np.round(margins, 1)
    model = Hierarchy(group, share, margins)
    score = lambda c: special.logit(np.clip(1 - model.complement(c, 49), 1e-12, 1 - 1e-12))
    c = optimize.brentq(lambda c: score(c) - special.logit(target), -4.0, 9.0, xtol=1e-4)
    prob, error = model.prob(c), abs(model.prob(c) - model.prob(c, 129))
    if not error < 1e-8:
        raise RuntimeError(f"hierarchy of {n} at {target}: two rules differ by {error:.1e}")
    top, within = np.sqrt(np.array(SHARES)[share[group]].T)
    cov = np.outer(top, top)
    same = group[:, None] == group
    cov[same] += np.outer(within, within)[same]
    np.fill_diagonal(cov, 1.0)
    return Problem(kind, c * margins, cov, prob, error + 1e-12)


def hierarchies(n, seed):
    """Three of each kind and target up to n = 199, one beyond."""
    for copy in range(3 if n <= 199 else 1):
        for i, target in enumerate(TARGETS):
            for k, kind in enumerate(("hierarchy, few", "hierarchy, flat")):
                yield hierarchy(kind, n, target, np.random.default_rng([n, seed, copy, i, k]))


def classifier_cases(n, seed):
    """18 cases with references, at n = 9 three times as many."""
    names = {"rf": "random rows", "mlp": "digits" if n == 9 else "networks", "lin": "singular"}
    for case, prob, error in classifiers.references(n, 54 if n == 9 else 18, seed):
        yield Problem(names[case.kind], case.upper, case.cov, prob, error)


def photographs(folder, levels=(0.9, 0.99)):
    """EfficientNet-Lite0 at the noise levels of bench/results/screening.json.

    Each answer comes from separation of variables over all rivals, and is checked by conditional
    Monte Carlo, which shares no code with it.
    """
    import torch

    from mvnrob import jac_cov_finalize, mvn_cdf

    rows = json.loads((harness.RESULTS / "screening.json").read_text())["rows"]
    for row in rows:
        path = folder / f"{row['photo']}.npz"
        if row["level"] not in levels or not path.exists():
            continue
        kept = np.load(path)
        S, logits = (torch.from_numpy(kept[name])[None] for name in ("S", "logits"))
        made = jac_cov_finalize(S, logits, torch.tensor([int(kept["target"])]), row["sigma"])
        upper, cov = made.z[0].double(), made.corr[0].double()
        result = mvn_cdf(
            upper, cov, abs_tol=5e-5, max_points=2**17, method="sov", points="richtmyer",
            compute_dtype=torch.float64, seed=987_654_321, return_info=True,
        )  # fmt: skip
        upper, cov = upper.numpy(), cov.numpy()
        values, vectors = np.linalg.eigh(cov)
        factor = vectors * np.sqrt(np.maximum(values, 0))
        case = classifiers.Case(row["photo"], "photo", row["level"], upper, factor)
        check, se = classifiers.conditional_monte_carlo(case, 16_000)
        prob, error = float(result.prob), float(result.error)
        if abs(prob - check) > 4.5 * np.hypot(se, error / 2.6) + 1e-7:
            raise RuntimeError(f"{row['photo']}: reference {prob} against {check} +- {se}")
        yield Problem("EfficientNet-Lite0", upper, cov, prob, error)
