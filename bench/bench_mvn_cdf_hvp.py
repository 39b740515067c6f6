"""Second derivatives of mvn_cdf and mvn_log_cdf: time beside value and gradient, and their true error.

python -m bench hessians [--n 3,4,9,20] [--products 9,20,49] [--quick]

One thread, CPU time, milliseconds a problem, one problem a call: to the limits (with the other sign to
the mean), whole by torch.func.hessian (`--n`) or times a vector of equal entries and length one, by two
backward passes (`--products`). Each holds all that is before it: the gradient its value, the Hessian both. "batch" is
the time of a problem of 16 that one call has, torch.func.vmap over torch.func.hessian.
Families, all of unit variances, with limits moved to p = .7 and, for log p, to 1e-6 too: "one factor"
(loads of .5 to .8; exact in mvn_cdf, and so are its conditional problems), "chain" (AR(1), .5) and
"hierarchy" (groups of about three below a common cause; sampled). mvn_cdf runs at `--abs-tol`, mvn_log_cdf at
`--rel-tol`. Three problems each, one beyond n = 20.

The derivatives are known: of quadratures of log p in float64 by torch's autograd, which two rules must give
alike. Errors are absolute, over entries of the upper triangle or of the product; "size" is the rms of what
is known. "over bound" is the largest error over what the docstring of mvn_cdf lets it be: the largest density
of a pair of limits times the tolerance, on the diagonal the sum of such terms; of log p the largest of them over
p, and the slopes' products, times rel_tol. Beyond twice its bound an entry is wrong, and nothing is timed.

SciPy is what there is without them: central differences of multivariate_normal.cdf, of its logarithm for
log p, 2 n^2 + 1 values for a Hessian and 4 n for a product, with the same random numbers (rng) at all, so
that most of their noise cancels. Step and points are chosen for it, by the true error: the cheapest that
is as good as ours, or its best (least rms error) where none is. With more points only the best step of
fewer and the next smaller one are tried; more points than `--scipy-cap` has time for are not. It is measured
at some of the entries of the first problem (`--entries`, drawn once), its time stated for all values.
"""

import math
import sys
import warnings
from typing import NamedTuple

from bench import harness

harness.numpy_threads_one()

import numpy as np
import torch
from scipy import optimize

from bench.bench_mvn_cdf_grad import chain_log_prob, rms

COUNT, MANY_VARIABLES = 3, 20
BATCH = 16
STEPS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
POINTS = (1000, 10_000, 100_000)
TARGETS = {".7": 0.7, "1e-6": 1e-6}
#: Function, p, which tolerance.
CALLS = (
    ("mvn_cdf", ".7", "abs_tol"),
    ("mvn_log_cdf", ".7", "rel_tol"),
    ("mvn_log_cdf", "1e-6", "rel_tol"),
)


class Problem(NamedTuple):
    upper: torch.Tensor
    cov: torch.Tensor
    log_prob: object  # of limits, by quadrature: a function of them and of the size of its rule
    seed: int


def normal_rule(nodes):
    """Nodes, and logarithms of the weights times the normal density."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    x, w = torch.from_numpy(10 * x), torch.from_numpy(10 * w)
    return x, w.log() - 0.5 * x * x - 0.5 * math.log(2 * math.pi)


def one_factor(n, g):
    load = 0.5 + 0.3 * torch.rand(n, generator=g, dtype=torch.float64)
    noise = (1 - load * load).sqrt()

    def log_prob(u, rule):
        x, log_w = normal_rule(80 * rule)
        return torch.logsumexp(log_w + given(u, x[:, None] * load, noise).sum(1), 0)

    return torch.outer(load, load).fill_diagonal_(1.0), log_prob


def hierarchy(n, g):
    """A common cause of .3 to .5 and one of .3 of each group."""
    group = torch.randperm(n, generator=g) % max(2, round(n / 3))
    top = (0.3 + 0.2 * torch.rand(n, generator=g, dtype=torch.float64)).sqrt()
    within = torch.full((n,), 0.3**0.5, dtype=torch.float64)
    noise = (1 - top * top - within * within).sqrt()
    cov = torch.outer(top, top) + (group[:, None] == group) * torch.outer(within, within)

    def log_prob(u, rule):
        x, log_w = normal_rule(64 * rule)
        total = log_w
        for k in range(int(group.max()) + 1):
            mine = (group == k).nonzero()[:, 0]
            shift = x[:, None, None] * top[mine] + x[:, None] * within[mine]
            logs = given(u[mine], shift, noise[mine]).sum(2)
            total = total + torch.logsumexp(log_w + logs, 1)
        return torch.logsumexp(total, 0)

    return cov.fill_diagonal_(1.0), log_prob


def given(u, shift, noise):
    """log P of each variable, given its causes."""
    return torch.special.log_ndtr((u - shift) / noise)


def chain(n, g):
    i = torch.arange(n).double()
    cov = 0.5 ** (i[:, None] - i).abs()
    return cov, lambda u, rule: chain_log_prob(u, 0.5, 80 + 80 * rule)


FAMILIES = {"one factor": one_factor, "chain": chain, "hierarchy": hierarchy}


def problems(family, n, p, count, seed=0):
    out = []
    for k in range(count):
        g = torch.Generator().manual_seed(1000 * seed + k)
        cov, log_prob = FAMILIES[family](n, g)
        margins = 0.6 * torch.rand(n, generator=g, dtype=torch.float64)

        def excess(c, margins=margins, log_prob=log_prob):
            return float(log_prob(margins + c, 1)) - math.log(TARGETS[p])

        c = optimize.brentq(excess, -8.0, 6.0, xtol=1e-3)
        out.append(Problem(margins + c, cov, log_prob, k))
    return out


# ---- what is known ------------------------------------------------------------------------------


class Known(NamedTuple):
    """Second derivatives of p or of log p, or their product with the vector, and what bounds errors."""

    second: torch.Tensor  # [n, n] or [n]
    bound: torch.Tensor


def direction(n):
    return torch.full((n,), n**-0.5, dtype=torch.float64)


def product(f, upper, v):
    """Of the Hessian with v, by two backward passes."""
    u = upper.detach().requires_grad_()
    (slope,) = torch.autograd.grad(f(u), u, create_graph=True)
    return torch.autograd.grad(slope @ v, u)[0]


def derivatives(f, upper):
    """Value, gradient and Hessian, a row after the other: vmap would keep all rows' graphs."""
    u = upper.detach().requires_grad_()
    value = f(u)
    (slope,) = torch.autograd.grad(value, u, create_graph=True)
    rows = [torch.autograd.grad(s, u, retain_graph=True)[0] for s in slope]
    return value.detach(), slope.detach(), torch.stack(rows)


def quadrature(problem):
    """log p, its gradient and its Hessian, by two rules that agree."""
    u, v = problem.upper, direction(len(problem.upper))
    log_p, slope, hessian = derivatives(lambda u: problem.log_prob(u, 2), u)
    off = float((product(lambda u: problem.log_prob(u, 3), u, v) - hessian @ v).abs().max())
    if not off <= 1e-9:
        raise SystemExit(f"bench hessians: two rules differ by {off:.1e}, nothing is timed")
    return log_p, slope, hessian


def known(problem, exact, function, tolerance, whole):
    (log_p, slope, second), of_log = exact, function == "mvn_log_cdf"
    u, r = problem.upper, problem.cov
    ratio = second + slope[:, None] * slope  # of the Hessian of p to p
    if of_log:
        pair = ratio.abs().fill_diagonal_(0.0)
        pair, own = torch.full_like(ratio, float(pair.max())), u.abs() * slope
    else:
        second, left = log_p.exp() * ratio, (1 - r * r).fill_diagonal_(1.0)
        pair = 1 / (2 * math.pi * left.sqrt())
        own = u.abs() * (-0.5 * u * u).exp() / math.sqrt(2 * math.pi)
    pair.fill_diagonal_(0.0)
    bound = tolerance * (pair + torch.diag(own + (r.abs() * pair).sum(1)))
    if of_log:
        # Slopes are known to rel_tol of the largest.
        bound += tolerance * slope.max() * (slope[:, None] + slope)
    if whole:
        return Known(second, bound)
    return Known(second @ direction(len(u)), bound @ direction(len(u)))


# ---- ours ---------------------------------------------------------------------------------------


def calls(problem, function, tolerance, whole):
    """Value, gradient and second derivatives, as functions without arguments."""
    import mvnrob

    u, n = problem.upper, len(problem.upper)
    options = {"seed": problem.seed}
    options["abs_tol" if function == "mvn_cdf" else "rel_tol"] = tolerance
    # By name at each call: what is judged is what is timed.
    f = lambda u: getattr(mvnrob, function)(u, problem.cov, **options)

    def gradient():
        leaf = u.detach().requires_grad_()
        return torch.autograd.grad(f(leaf), leaf)[0]

    second = lambda: torch.func.hessian(f)(u) if whole else product(f, u, direction(n))
    return lambda: f(u), gradient, second


def in_one_call(group, function, tolerance):
    """Hessians of a batch, the problems in turn."""
    import mvnrob

    some = [group[k % len(group)] for k in range(BATCH)]
    name = "abs_tol" if function == "mvn_cdf" else "rel_tol"

    def hessian(upper, cov, seed):
        f = lambda u: getattr(mvnrob, function)(u, cov, seed=seed, **{name: tolerance})
        return torch.func.hessian(f)(upper)

    upper, cov = (torch.stack([getattr(p, field) for p in some]) for field in ("upper", "cov"))
    seed = torch.tensor([p.seed for p in some])
    return lambda: torch.func.vmap(hessian)(upper, cov, seed)


def refuse_wrong(name, found, truth):
    """The largest error over its bound; no more than two."""
    worst = max(
        float(((x - t.second).abs() / t.bound).max())
        for x, t in zip(found, truth, strict=True)
    )  # fmt: skip
    if not worst <= 2:
        raise SystemExit(
            f"bench hessians: {name}: an error of {worst:.3g} times its bound; nothing is timed"
        )
    return worst


def entries(matrix):
    """Each once: the upper triangle, or the product itself."""
    if matrix.dim() == 1:
        return matrix
    return matrix[tuple(torch.triu_indices(*matrix.shape))]


def measured(group, truth, function, tolerance, whole, repeats, budget_s):
    """Times and errors of second derivatives; a wrong answer is refused before any."""
    every = [calls(p, function, tolerance, whole) for p in group]
    found = [second() for _, _, second in every]
    name = f"{function}, n = {len(group[0].upper)}, {'Hessian' if whole else 'product'}"
    worst = refuse_wrong(name, found, truth)
    off = torch.cat([entries(x - t.second) for x, t in zip(found, truth, strict=True)])
    line = {"tol": tolerance}
    for k, part in enumerate(("value", "gradient", "second")):
        each = [c[k] for c in every]
        timing, _ = harness.cpu_time(
            lambda each=each: [call() for call in each], repeats, least_s=0.05, budget_s=budget_s
        )
        line |= {
            f"{part}_ms": 1e3 * timing["median_s"] / len(group),
            f"{part}_ms_min": 1e3 * timing["min_s"] / len(group),
            f"{part}_ms_max": 1e3 * timing["max_s"] / len(group),
        }
    if whole:
        call = in_one_call(group, function, tolerance)
        timing, batch = harness.cpu_time(call, repeats, least_s=0.05, budget_s=budget_s / 4)
        refuse_wrong(f"{name} of a batch", batch[: len(group)], truth)
        line["batch_ms"] = 1e3 * timing["median_s"] / BATCH
    return line | {
        "second/value": line["second_ms"] / line["value_ms"],
        "second/gradient": line["second_ms"] / line["gradient_ms"],
        "rms": rms(off),
        "largest": float(off.abs().max()),
        "size": rms(torch.cat([entries(t.second) for t in truth])),
        "over_bound": worst,
    }


# ---- SciPy --------------------------------------------------------------------------------------


class Differences:
    """Central differences of SciPy's cdf at some entries of a Hessian or of its product."""

    def __init__(self, problem, whole, count):
        n = len(problem.upper)
        self.problem, self.whole = problem, whole
        rows, columns = (t.numpy() for t in torch.triu_indices(n, n))
        self.at = np.arange(len(rows) if whole else n)
        if len(self.at) > count:
            self.at = np.sort(np.random.default_rng(0).permutation(self.at)[:count])
        unit = np.eye(n)
        if whole:
            self.pairs = [(unit[i], unit[j]) for i, j in zip(rows, columns, strict=True)]
        else:
            self.pairs = [(direction(n).numpy(), e) for e in unit]
        same = [np.array_equal(*self.pairs[k]) for k in self.at]
        self.widths = np.where(same, 1, 2)  # in steps
        self.values_of_all = 2 * n * n + 1 if whole else 4 * n

    def values(self, step, points):
        """p at the corners of each entry, [entries, 4], and CPU seconds of a value."""
        from scipy.stats import multivariate_normal

        upper, cov = self.problem.upper.numpy(), self.problem.cov.numpy()
        made = {}

        def p(move):
            key = move.tobytes()
            if key not in made:
                made[key] = float(
                    multivariate_normal.cdf(
                        upper + step * move, cov=cov, maxpts=points, abseps=1e-12,
                        rng=np.random.default_rng(self.problem.seed),
                    )
                )  # fmt: skip
            return made[key]

        def all_corners():
            made.clear()
            out = []
            for a, b in (self.pairs[k] for k in self.at):
                if np.array_equal(a, b):
                    out.append([p(a), p(0 * a), p(0 * a), p(-a)])
                else:
                    out.append([p(a + b), p(a - b), p(b - a), p(-a - b)])
            return np.array(out)

        timing, corners = harness.cpu_time(all_corners, repeats=1, warm_up=0)
        return corners, timing["median_s"] / len(made)

    def rms(self, setting, truth, of_log):
        """Error of what was tried; infinite where a logarithm is."""
        step, _, corners, _ = setting
        with np.errstate(divide="ignore", invalid="ignore"):
            f = np.log(corners) if of_log else corners
            second = f[:, 0] - f[:, 1] - f[:, 2] + f[:, 3]
        off = second / (self.widths * step) ** 2 - entries(truth.second).numpy()[self.at]
        return float(np.sqrt(np.mean(off**2))) if np.isfinite(off).all() else math.inf


def scipy_settings(problem, exact, whole, count, points, cap_s):
    """Differences, and (step, points, corners, seconds of a value) of what was tried: for p and log p."""
    differences, tried, steps = Differences(problem, whole, count), [], STEPS
    truth = known(problem, exact, "mvn_cdf", 1.0, whole)
    for maxpts in points:
        new = []
        for step in steps:
            new.append((step, maxpts, *differences.values(step, maxpts)))
        tried += new
        best = min(new, key=lambda setting: differences.rms(setting, truth, False))
        steps = STEPS[STEPS.index(best[0]) :][:2]
        # The next number of points takes ten times as long.
        if 10 * best[3] * best[2].size * len(steps) > cap_s:
            break
    return differences, tried


def scipy_line(differences, tried, truth, of_log, goal):
    """The cheapest setting whose rms error is no larger than the goal, or its best."""
    lines = [
        {"scipy_ms": 1e3 * setting[3] * differences.values_of_all,
         "scipy_rms": differences.rms(setting, truth, of_log), "scipy_points": setting[1],
         "scipy_step": setting[0], "scipy_entries": len(differences.at)}
        for setting in tried
    ]  # fmt: skip
    lines = [line for line in lines if math.isfinite(line["scipy_rms"])]
    good = [line for line in lines if line["scipy_rms"] <= goal]
    if good:
        return min(good, key=lambda line: line["scipy_ms"]) | {"scipy_how": "as good"}
    if lines:
        return min(lines, key=lambda line: line["scipy_rms"]) | {"scipy_how": "its best"}
    return {"scipy_how": "no number"}


def lines(n, whole, args):
    count = 1 if args.quick or n > MANY_VARIABLES else COUNT
    points = POINTS[:2] if args.quick else POINTS
    for family in FAMILIES:
        for p in TARGETS:
            group = problems(family, n, p, count, args.seed)
            exact = [quadrature(problem) for problem in group]
            settings = scipy_settings(
                group[0], exact[0], whole, args.entries, points, args.scipy_cap
            )
            for function, at, which in CALLS:
                if at != p:
                    continue
                tolerance = getattr(args, which)
                truth = [
                    known(problem, e, function, tolerance, whole)
                    for problem, e in zip(group, exact, strict=True)
                ]
                line = measured(group, truth, function, tolerance, whole, args.repeats, args.budget)
                line |= scipy_line(*settings, truth[0], function == "mvn_log_cdf", line["rms"])
                if "scipy_ms" in line:
                    line["scipy/ours"] = line["scipy_ms"] / line["second_ms"]
                yield {
                    "what": "Hessian" if whole else "product", "n": n, "family": family, "p": p,
                    "function": function, "problems": count,
                } | line  # fmt: skip


def main():
    p = harness.parser(__doc__.splitlines()[0])
    known_n = harness.sizes(range(3, 200))
    p.add_argument("--n", type=known_n, default="3,4,9,20", help="of Hessians")
    p.add_argument("--products", type=known_n, default="9,20,49", help="n of products")
    p.add_argument("--abs-tol", type=float, default=1e-4, help="of mvn_cdf")
    p.add_argument("--rel-tol", type=float, default=1e-3, help="of mvn_log_cdf")
    p.add_argument("--quick", action="store_true", help="fewer problems and points of SciPy")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--budget", type=float, default=10.0, help="CPU seconds after which repeats end")
    p.add_argument("--entries", type=int, default=12, help="that SciPy is measured at")
    p.add_argument(
        "--scipy-cap", type=float, default=20.0, help="CPU seconds of one number of points"
    )
    p.add_argument("--seed", type=int, default=0, help="of the problems")
    args = p.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="mvn_.*: .*max_points")
    report = harness.environment()
    harness.show_environment(report)
    rows = []
    for whole, sizes in ((True, args.n), (False, args.products)):
        for n in sizes:
            mine = list(lines(n, whole, args))
            harness.show(mine, list(mine[0]))
            rows += mine
    harness.write("mvn_cdf_hvp", report, rows, args.out)


if __name__ == "__main__":
    sys.exit(main())
