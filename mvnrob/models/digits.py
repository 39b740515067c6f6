"""The built-in digits classifier: scikit-learn's 8x8 digits, trained on the spot."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._extras import require

#: Every fifth image is for testing: 360 of 1,797.
TEST_EVERY = 5


def load_digits_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(x_train, y_train, x_test, y_test)``: float32 ``[N, 64]`` in [0, 1], int64 ``[N]``."""
    digits = require("sklearn.datasets", "scikit-learn", "demo").load_digits()
    x = torch.from_numpy(digits.data).float() / 16.0
    y = torch.from_numpy(digits.target).long()
    # a fixed shuffle: the file is sorted by writer
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test = torch.zeros(len(x), dtype=torch.bool)
    test[order[::TEST_EVERY]] = True
    return x[~test], y[~test], x[test], y[test]


def load_digits_classifier(*, epochs: int = 60) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A ReLU network 64-128-128-10 in eval mode with its test set: ``(model, x_test, y_test)``.

    Inputs ``[B, 64]`` in [0, 1], logits ``[B, 10]``. Deterministic on one machine: one thread, its
    own generators; the global generator and thread count are as before afterwards. At least 96 %
    correct on the 360 test images (tests/test_estimators.py); 2 to 4 seconds of one core.
    """
    x_train, y_train, x_test, y_test = load_digits_data()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small matrices: two threads on a busy machine are 20 times slower
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            model = _train(x_train, y_train, epochs)
    finally:
        torch.set_num_threads(threads)
    return model.eval().requires_grad_(False), x_test, y_test


def _train(x: Tensor, y: Tensor, epochs: int) -> nn.Sequential:
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    return train_in_order(model, x, y, epochs=epochs, batch_size=64)


def train_in_order(
    model: nn.Sequential, x: Tensor, y: Tensor, *, epochs: int, batch_size: int
) -> nn.Sequential:
    """Cross-entropy by Adam with a cosine schedule, batches in an order of their own generator."""
    order = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=order).split(batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        schedule.step()
    return model
