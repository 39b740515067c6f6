"""Problems of nearest_ends, and all ends in float64, for tests of its CPU and CUDA kernels."""

import math

import torch

from mvnrob._nearest_ends import SIGNS

#: inputs, rows, rising, exact columns, others, draws
SIZES = [
    (1, 1, 1, 1, 1, 1),
    (2, 5, 0, 3, 8, 7),  # rows that fall alone
    (3, 64, 64, 0, 16, 65),  # no exact column, none that falls, a tile's edge
    (2, 200, 131, 17, 31, 130),
]


def problem(inputs, rows, rising, exact, others, draws):
    """limit, table and draws, of which two columns are not looked at; some rows are never near."""
    generator = torch.Generator().manual_seed(rows)
    normal = lambda *shape: torch.randn(shape, generator=generator)
    limit, table = 3 * normal(inputs, rows), normal(inputs, rows, exact + others)
    limit[:, 1:rising:7] = math.inf
    limit[:, rising + 1 :: 5] = -math.inf
    return limit, table, normal(draws, exact + others + 2)


def check(found, limit, table, draws, rising, signs):
    """``signs``: of each column, ``[signs, K]``."""
    upper, lower, above, below = found
    limit, table, draws = (part.double() for part in (limit, table, draws))
    draws = torch.stack([draws[:, : table.shape[2]] * sign for sign in signs])
    every = limit - torch.einsum("snk,bik->snbi", draws, table)
    for end, at, some, way in (
        (upper, above, every[..., :rising], 1.0),
        (lower, below, every[..., rising:], -1.0),
    ):
        if not some.shape[3]:
            assert torch.equal(end, torch.full_like(end, way * math.inf))
            continue
        nearest = some.amin(3) if way > 0 else some.amax(3)
        torch.testing.assert_close(end.double(), nearest, rtol=1e-6, atol=5e-5)
        if not len(at):
            continue
        # another row only where it is as near
        there = every.gather(3, at[..., None])[..., 0]
        torch.testing.assert_close(there, nearest, rtol=1e-6, atol=5e-5)
        first, last = (0, rising) if way > 0 else (rising, limit.shape[1])
        assert ((at >= first) & (at < last)).all()


def signs_of(exact, others, split=None):
    if split is None:
        return [torch.tensor([1.0] * exact + [sign] * others) for sign in SIGNS]
    return [
        torch.tensor([1.0] * exact + [one] * split + [two] * (others - split))
        for one in SIGNS
        for two in SIGNS
    ]
