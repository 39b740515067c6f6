"""What mvn_cdf is measured against on the same device: crude Monte Carlo and BoTorch's MVNXPB.

Both get the whole batch at once and nothing that they could share is done twice.
"""

import torch

from bench import cuda_timing

# Elements of one [problems, n, draws] array of the crude estimator.
CHUNK = 2**27


def factor(cov):
    """float32 [B, n, n], cov = factor factor^T: Cholesky, by eigenvalues where it is singular."""
    out, info = torch.linalg.cholesky_ex(cov)
    bad = info.nonzero().flatten()
    if len(bad):
        values, vectors = torch.linalg.eigh(cov[bad])
        out[bad] = vectors * values.clamp_min(0).sqrt()[:, None, :]
    return out.float()


def count(low, upper, draws, generator):
    """How many of `draws` normal vectors stay below `upper`, for each problem.

    The problems share the vectors: each answer is as good as with its own, and they cost nothing.
    """
    noise = torch.randn(low.shape[-1], draws, device=low.device, generator=generator)
    return ((low @ noise) <= upper[:, :, None]).all(1).sum(-1)


def crude(upper, cov, prob, device, budget_s):
    """Seconds a problem of the factor, seconds of one draw, and whether the counts are right."""
    batch, n = upper.shape
    draws = max(64, min(2**20, CHUNK // (batch * n)))
    factor_time, low = cuda_timing.measure(
        lambda: factor(cov), device, repeats=3, budget_s=0.4 * budget_s
    )
    limits, generator = upper.float(), torch.Generator(device=device).manual_seed(1)
    counted, calls = torch.zeros(batch, dtype=torch.int64, device=device), 0

    def draw():
        nonlocal calls
        calls += 1
        counted.add_(count(low, limits, draws, generator))

    draw_time, _ = cuda_timing.measure(draw, device, repeats=5, budget_s=0.6 * budget_s)
    made = counted.double().cpu() / (calls * draws)
    spread = (prob * (1 - prob) / (calls * draws)).sqrt()
    # Five standard errors, one count where p is next to 0 or 1, and float32's limits.
    right = ((made - prob).abs() <= 5 * spread + 8 / (calls * draws) + 1e-6).all()
    return {
        "factor_s": factor_time["median_s"] / batch,
        "draw_s": draw_time["median_s"] / (batch * draws),
        "draws": calls * draws,
        "right": bool(right),
    }


def mvnxpb(upper, cov, device, budget_s):
    """BoTorch's bivariate conditioning: an approximation, its error is what it is.

    Returns its timing and probabilities, or a sentence that says why there are none.
    """
    try:
        from botorch.utils.probability.mvnxpb import MVNXPB
        from linear_operator.utils.errors import NotPSDError
    except ImportError as error:
        return f"BoTorch is not installed here ({error}); pip install botorch"
    bounds = torch.stack([torch.full_like(upper, -torch.inf), upper], -1)
    try:
        timing, log_prob = cuda_timing.measure(
            lambda: MVNXPB(cov, bounds).solve(), device, repeats=3, warm_up=0, budget_s=budget_s
        )
    except (NotPSDError, RuntimeError, ValueError) as error:  # a result as well
        said = (str(error).splitlines() or [""])[0]
        return f"MVNXPB failed: {type(error).__name__}: {said}"
    return timing, log_prob.exp().cpu()
