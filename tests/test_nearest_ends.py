"""nearest_ends against all ends in float64; its CUDA kernel's body by the shim."""

import numpy as np
import pytest
import torch
from nearest_ends_cases import SIZES, check, problem, signs_of
from test_shim_mvn_cdf import shim  # noqa: F401  (a fixture)

from mvnrob._nearest_ends import nearest_ends


@pytest.mark.parametrize("wants_rows", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_nearest_ends(size, wants_rows):
    limit, table, draws = problem(*size)
    _, _, rising, exact, others, count = size
    for split in {None, 0, others // 2, others}:
        options = {"rising": rising, "exact": exact, "split": split, "wants_rows": wants_rows}
        found = nearest_ends(limit, table, draws, **options)
        signs = signs_of(exact, others, split)
        assert found[0].shape == (len(signs), count, len(limit))
        check(found, limit, table, draws, rising, signs)
        for part in (found[2], found[3]):
            assert part.shape == ((len(signs) if wants_rows else 0), *found[0].shape[1:])
        # of one input alone, and of some draws
        one = nearest_ends(limit[:1], table[:1], draws[:1], **options)
        torch.testing.assert_close(one[0], found[0][:, :1, :1])
        torch.testing.assert_close(one[1], found[1][:, :1, :1])


@pytest.mark.parametrize("size", SIZES)
def test_by_the_kernel(shim, size):  # noqa: F811
    """In the natural order of threads and blocks and in another one, also by fewer blocks."""
    limit, table, draws = problem(*size)
    _, _, rising, exact, others, _ = size
    for blocks, order in ((0, 0), (1, 5), (3, 0)):
        shim.set_order(order)
        for flipped in {exact + others, exact + others // 2}:
            call = lambda wants_rows, flipped=flipped, blocks=blocks: [
                torch.from_numpy(np.array(part))
                for part in shim.nearest_ends(
                    limit.numpy(), table.numpy(), draws.numpy(), rising, exact, flipped, wants_rows, blocks
                )
            ]  # fmt: skip
            found = call(True)
            signs = torch.stack(signs_of(exact, others))
            signs[:, flipped:] *= -1
            check(found, limit, table, draws, rising, signs)
            ends = call(False)
            assert all(torch.equal(a, b) for a, b in zip(ends[:2], found[:2], strict=True))
    shim.set_order(0)


def test_contract():
    limit, table, draws = problem(2, 6, 4, 3, 4, 5)
    op = torch.ops.mvnrob.nearest_ends.default
    for split, wants_rows in ((-1, True), (2, False)):
        torch.library.opcheck(op, (limit, table, draws, 4, 3, split, wants_rows))
    empty = nearest_ends(limit, table, draws[:0], rising=4, exact=3)
    assert empty[0].shape == empty[1].shape == (2, 0, 2)
    options = {"rising": 4, "exact": 3}
    for change, words in (
        ({"limit": limit[0]}, r"limit must have shape \[b, S\], got \[6\]"),
        ({"limit": limit[:, :5]}, r"table must have shape \[2, 5, K\], got \[2, 6, 7\]"),
        ({"draws": draws[:, :6]}, r"draws must have shape \[N, 7 or more\], got \[5, 6\]"),
        ({"table": table.double()}, "arguments must be float32"),
        ({"rising": 7}, "rising must be 0 to 6, got 7"),
        ({"exact": 8}, "exact must be 0 to 7, got 8"),
        ({"split": 5}, "split must be -1 to 4, got 5"),
    ):
        given = {"limit": limit, "table": table, "draws": draws, **options, **change}
        with pytest.raises(RuntimeError, match=f"nearest_ends: {words}"):
            nearest_ends(**given)


def test_what_is_no_number_stays(shim):  # noqa: F811
    """And an open side's row is its first one."""
    limit = torch.tensor(
        [[torch.nan, 1.0, 2.0, 3.0], [torch.inf, torch.inf, -torch.inf, -torch.inf]]
    )
    table, draws = torch.zeros(2, 4, 2), torch.ones(3, 2)
    options = {"rising": 2, "exact": 1, "wants_rows": True}
    expected = nearest_ends(limit, table, draws, **options)
    assert expected[0][:, :, 0].isnan().all() and (expected[1][:, :, 0] == 3.0).all()
    found = shim.nearest_ends(limit.numpy(), table.numpy(), draws.numpy(), 2, 1, 2, True)
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(torch.from_numpy(np.array(theirs)), ours, equal_nan=True)
