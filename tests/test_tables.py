from __future__ import annotations

import pytest

from localq.tables import format_coarsely, format_range, format_rate, format_spread, parse_bytes


@pytest.mark.parametrize(
    ("value", "text"),
    [(31245.3, "31245"), (1234.5, "1234"), (135.26, "135.3"), (20.123, "20.12"), (1.2626, "1.26"), (0.15, "0.150")],
)
def test_a_rate_has_four_significant_digits_where_two_decimals_are_enough(value: float, text: str) -> None:
    assert format_rate(value) == text


def test_what_belongs_to_a_rate_has_its_decimals() -> None:
    assert format_spread(135.26, 5.8312) == "135.3 ± 5.8"
    assert format_spread(9876.5, 0.2) == "9876 ± 0"
    assert format_spread(20.123, None) == "20.12"
    assert format_range(98.456, 104.321) == "98.5 to 104.3"
    assert format_range(0.0, 0.0) == "0.000 to 0.000"


@pytest.mark.parametrize(
    ("value", "text"), [(1.25, "1.25"), (1.0, "1.00"), (0.984, "0.98"), (13.24, "13.2"), (135.4, "135"), (0.0, "0.00")]
)
def test_a_ratio_or_a_limit_has_three_significant_digits(value: float, text: str) -> None:
    assert format_coarsely(value) == text


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("2.2GB", 2_200_000_000),
        (" 800 mb ", 800_000_000),
        ("1.5GiB", 1_610_612_736),
        ("70k", 70_000),
        ("2Ti", 2 << 40),
        ("12 B", 12),
        ("0", 0),
        ("123456789012345678", 123456789012345678),
    ],
)
def test_sizes_are_read_in_decimal_and_binary_units(text: str, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "GB", "2.2", "2.2GBs", "-1GB", "1e3", "20 apples", "5 ib", "٣GB"])
def test_what_is_no_size_is_none(text: str) -> None:
    assert parse_bytes(text) is None
