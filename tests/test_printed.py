"""Probabilities are printed to the digits that their errors back."""

import math

import pytest

from mvnrob.printed import amount, probability, with_error


@pytest.mark.parametrize(
    ("p", "error", "complement", "text"),
    [
        # 1.8e-14 is below what an error of 1e-4 knows
        (1.0, 1e-4, 1.8e-14, ">= 0.9999"),
        (1.8e-14, 1e-4, None, "<= 0.0001"),
        (0.99996, 1e-4, None, ">= 0.9998"),  # the end, rounded outwards
        (0.99994, 1e-4, None, "0.9999"),
        (0.9995, 1e-4, None, "0.9995"),
        (0.9995, 1e-6, 5.04e-4, "1 - 5.0e-04"),
        (1.0, 3.2e-7, 1e-9, ">= 1 - 4e-07"),
        (1.0, 1e-9, 2.04e-7, "1 - 2.0e-07"),
        (1.0, 1e-7, 2.04e-7, "1 - 2e-07"),
        (2.04e-7, 1e-9, None, "2.0e-07"),
        (1.0, 1e-30, 1.8e-14, "1 - 1.8e-14"),
        (0.763412, 2e-3, None, "0.763"),
        (0.763412, 0.02, None, "0.76"),
        (0.763412, 1e-12, None, "0.7634"),
        (1.0, 0.0053, 0.0, ">= 0.994"),  # all of 1,000 draws
        (0.99, 0.02, None, "0.99"),
        (0.999, 0.02, None, ">= 0.97"),
        (0.3, 0.4, None, "0.3"),
        (0.98, 0.99, None, "0 to 1"),
        (0.5, 1.0, None, "0 to 1"),
        (0.94, 0.95, None, "0 to 1"),
        (0.5, math.inf, None, "0 to 1"),
        (1.0, 0.0, 0.0, "1"),
        (0.0, 0.0, None, "0"),
        (0.7634123, math.nan, None, "0.7634"),
        (1.0, None, 1e-14, "1.0000"),
        (None, 1e-3, None, ""),
        (math.nan, 1e-3, None, ""),
    ],
)
def test_digits_of_a_probability(p, error, complement, text):
    assert probability(p, error, complement) == text


def test_an_end_holds_the_interval():
    """What is printed as an end is never inside of p - error .. p + error, by more than its rounding."""
    for tail in (0.0, 1e-9, 3.3e-6, 4e-5, 0.01):
        for error in (1e-7, 3.3e-5, 1e-4, 7e-4, 0.012, 0.3):
            for near_one in (True, False):
                text = probability(
                    1 - tail if near_one else tail, error, tail if near_one else None
                )
                if text[0] not in "<>":
                    continue
                end = float(text[3:].removeprefix("1 - "))
                end = 1 - end if near_one and "1 - " not in text else end
                assert (tail + error) * (1 - 2e-3) <= end <= 2.01 * (tail + error)


def test_amounts_and_errors():
    assert amount(12.345, 0.02) == "12.35" or amount(12.345, 0.02) == "12.34"
    assert amount(3e-12, 3e-4) == "<= 0.0003"
    assert amount(3e-12, 3.0) == "<= 3"
    assert amount(946.5, 9.7) == "946" and amount(1.3, 17.0) == "1"
    assert amount(None) == amount(1.0, math.inf) == ""
    assert with_error(0.763412, 2e-3) == "0.763 ± 0.002"
    assert with_error(1 - 1e-9, 1e-4) == ">= 0.9999"
    # a bound is rounded up, and p goes by what is printed
    assert with_error(0.763412, 0.0149) == "0.76 ± 0.02"
    assert with_error(0.9, 9.6e-4) == "0.900 ± 0.001"
    assert with_error(0.5, 0.96) == "0 to 1"
