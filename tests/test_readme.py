"""README's Python blocks run, one after the other, and print what stands below them."""

import contextlib
import io
import math
import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
#: Answers are right to the tolerance of the examples, 1e-3; their errors, all below that, vary with
#: the instruction set and are compared by size.
TOLERANCE = 2e-3
NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?")


def blocks(text: str) -> list[tuple[str, str]]:
    """``(code, output)``: a fenced Python block and the indented lines that follow it, if any."""
    out = []
    for match in re.finditer(
        r"```python\n(.*?)```\n(?:\n((?:    [^\n]*\n|\n(?=    ))+))?", text, re.DOTALL
    ):
        out.append((match[1], match[2] or ""))
    return out


def same(printed: str, shown: str) -> bool:
    a, b = (NUMBER.sub("#", t).split() for t in (printed, shown))
    x, y = ([float(n) for n in NUMBER.findall(t)] for t in (printed, shown))
    return "".join(a) == "".join(b) and all(
        abs(p - q) <= max(TOLERANCE, 5e-3 * abs(q))
        and (not 0 < abs(q) < TOLERANCE or p == 0 or abs(math.log10(abs(p / q))) < 1)
        for p, q in zip(x, y, strict=True)
    )


@pytest.mark.filterwarnings("ignore")
def test_blocks_print_what_is_shown():
    pytest.importorskip("sklearn")
    found = blocks(README.read_text())
    assert len(found) >= 8 and sum(bool(shown) for _, shown in found) >= 6
    names: dict = {}
    for code, shown in found:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), names)  # noqa: S102  (our own file)
        if shown:
            text = printed.getvalue()
            assert same(text, shown), f"{code}\nprints\n{text}\nbut README shows\n{shown}"


def test_a_wrong_figure_is_seen():
    assert same("tensor([0.5001, 3.1e-07])", "tensor([0.5000, 2.2e-07])")
    assert not same("tensor([0.51])", "tensor([0.50])")
    assert not same("tensor([0.50, 1e-04])", "tensor([0.50, 1e-07])")
    assert not same("0.5 CONVERGED", "0.5 EXACT")
