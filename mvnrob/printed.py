"""Probabilities as text: no more digits than their errors back."""

from __future__ import annotations

import math

#: Decimals of a p whose error is smaller still.
_DECIMALS = 4


def probability(
    p: float | None, error: float | None = None, complement: float | None = None
) -> str:
    """``p`` to the digits that its ``error`` backs: ``0.763`` with .002, ``1 - 2.0e-07`` with 1e-9.

    Where these leave nothing of 1 - p, or of p, the end of its interval: ``>= 0.9999`` for 1 - 1.8e-14
    with 1e-4. Without a stated error (None or NaN) four decimals. ``complement``: 1 - p, where it is known to
    more digits than p is. Nothing for None and NaN.
    """
    if p is None or math.isnan(p):
        return ""
    return _text(p, error, 1 - p if complement is None else complement)


def amount(value: float | None, error: float | None = None) -> str:
    """The same of what has no upper end, such as a sum of probabilities: ``<= 0.0003``."""
    return "" if value is None or math.isnan(value) else _text(value, error, None)


def with_error(p: float, error: float) -> str:
    """``0.763 ± 0.002``; an end of the interval has the error in it."""
    if not math.isfinite(error):
        return probability(p, error)
    error = _one_digit_up(error)
    text = probability(p, error)
    return text if text.startswith((">", "<", "0 to")) or not error else f"{text} ± {error:.1g}"


def _text(value: float, error: float | None, complement: float | None) -> str:
    if error is None or math.isnan(error):
        return f"{value:.{_DECIMALS}f}"
    if math.isinf(error):
        return "" if complement is None else "0 to 1"
    near_one = complement is not None and complement < value
    tail = complement if near_one else value
    size = _exponent(error)
    if error < tail < 1e-3 and size < -_DECIMALS:
        digits = min(_exponent(tail) - size, 1)
        return ("1 - " if near_one else "") + f"{tail:.{digits}e}"
    if complement is not None and error >= max(value, complement):
        return "0 to 1"
    rounded = f"{value:.{min(max(-size, int(error < 1)), _DECIMALS)}f}"
    if float(rounded) != (1 if near_one else 0):
        return rounded
    end = _one_digit_up(max(tail, 0.0) + error)
    if end == 0:
        return "1" if near_one else "0"
    if end >= 1 and complement is not None:
        return "0 to 1"
    short = end >= 10**-_DECIMALS
    text = f"{1 - end if near_one else end:.{max(-_exponent(end), 0)}f}" if short else f"{end:.0e}"
    return (">= " if near_one else "<= ") + ("1 - " if near_one and not short else "") + text


def _exponent(x: float) -> int:
    """Of x's leading digit; of zero, one that leaves every digit."""
    return math.floor(math.log10(x)) if x > 0 else -400


def _one_digit_up(x: float) -> float:
    """The next number of one digit; a thousandth above it is rounding."""
    if x <= 0:
        return 0.0
    unit = _exponent(x)
    return float(f"{math.ceil(x / 10.0**unit - 1e-3)}e{unit}")
