"""The built-in classifier of digit pairs: two of scikit-learn's digits side by side, 100 classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .digits import load_digits_data, train_in_order

#: Pairs drawn for training and for testing. Both digits of a pair come from the same part of the
#: data, so a test pair holds no image that was trained on.
TRAIN_PAIRS, TEST_PAIRS = 30_000, 1_000


def load_digit_pairs_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(x_train, y_train, x_test, y_test)``: float32 ``[N, 128]`` in [0, 1], int64 ``[N]``.

    An input is an image of 8 rows and 16 columns, flattened; its class is 10 times the left digit
    plus the right one.
    """
    x_train, y_train, x_test, y_test = load_digits_data()
    generator = torch.Generator().manual_seed(2)
    train = _pairs(x_train, y_train, TRAIN_PAIRS, generator)
    return *train, *_pairs(x_test, y_test, TEST_PAIRS, generator)


def load_digit_pairs_classifier(*, epochs: int = 12) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A ReLU network 128-192-64-100 in eval mode with its test set: ``(model, x_test, y_test)``.

    Inputs ``[B, 128]`` in [0, 1], logits ``[B, 100]``. The margins' covariance has rank 64 at most,
    of 99: the last layer is 64 wide. Deterministic on one machine: one thread, its own generators;
    the global generator and thread count are as before afterwards. At least 93 % correct on the
    1,000 test pairs (tests/test_bench.py); some 7 seconds of one core.
    """
    x_train, y_train, x_test, y_test = load_digit_pairs_data()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small matrices: two threads on a busy machine are 20 times slower
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            model = _train(x_train, y_train, epochs)
    finally:
        torch.set_num_threads(threads)
    return model.eval().requires_grad_(False), x_test, y_test


def _pairs(x: Tensor, y: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    left, right = torch.randint(len(x), (2, count), generator=generator)
    images = torch.cat([x[left].unflatten(1, (8, 8)), x[right].unflatten(1, (8, 8))], dim=2)
    return images.flatten(1), 10 * y[left] + y[right]


def _train(x: Tensor, y: Tensor, epochs: int) -> nn.Sequential:
    model = nn.Sequential(
        nn.Linear(128, 192), nn.ReLU(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 100)
    )
    return train_in_order(model, x, y, epochs=epochs, batch_size=128)
