"""python -m mvnrob.demo.training: raising p on digits by training with it."""

from __future__ import annotations

import sys
import time

import torch
from torch import Tensor, nn

from ..models.digits import load_digits_classifier, load_digits_data
from ..robustness import robustness
from ..training import taylor_probability

SIGMA, STEPS, BATCH = 0.3, 150, 64


def train_robustly(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    sigma: float,
    steps: int,
    method: str = "taylor",
    weight: float = 1.0,
    rate: float = 1e-3,
) -> None:
    """Goes on training ``model`` in place: cross-entropy less ``weight`` times the mean of ln p.

    ``x`` [N, *shape] and ``y`` int64 [N]: the training set, drawn in batches of 64 in a fixed order.
    """
    model.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(steps):
        batch = torch.randint(len(x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        p = taylor_probability(model, x[batch], sigma, target=y[batch], method=method, seed=step)
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        # Below 1e-3 the digits of p are noise at the tolerance asked for: the margin's loss is for those.
        loss = loss - weight * p.clamp_min(1e-3).log().mean()
        loss.backward()
        optimizer.step()
    model.requires_grad_(False)


def main() -> int:
    x_train, y_train, x, y = load_digits_data()
    print(f"digits, sigma {SIGMA}, {STEPS} steps of {BATCH}; test set, labels as targets")
    print(f"{'':28}{'accuracy':>9}{'p, network':>12}{'p, linear':>11}", end="")
    print(f"{'seconds':>9}")
    rows = {
        "as trained": None,
        "with mvn_cdf's p": "taylor",
        "with Mendell and Elston's": "taylor_mendell_elston",
        "with the sigmoid's": "taylor_mvs",
    }
    for name, method in rows.items():
        model, _, _ = load_digits_classifier()
        start = time.perf_counter()
        if method is not None:
            train_robustly(model, x_train, y_train, sigma=SIGMA, steps=STEPS, method=method)
        spent = time.perf_counter() - start
        counted = robustness(model, x, SIGMA, target=y, method="mc", n_samples=1000).prob.mean()
        linear = robustness(model, x, SIGMA, target=y).prob.mean()
        accuracy = (model(x).argmax(1) == y).double().mean()
        print(f"{name:28}{accuracy:9.3f}{counted:12.3f}{linear:11.3f}{spent:9.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
