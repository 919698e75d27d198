"""Numbers as text."""

import pytest

from fvq.runtime.text import duration, expected, model_size, percent, significant


@pytest.mark.parametrize(
    ("value", "text"),
    [(276.6, "277"), (0.0071111, "0.00711"), (25.04567, "25.0"), (9.996, "10.0"), (0, "0"), (1234567.0, "1,230,000")],
)
def test_three_significant_digits(value, text):
    assert significant(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100%"), (0.0, "0%"), (0.5, "50.0%"), (0.0029, "0.29%"), (0.9999, "99.99%"), (262143 / 262144, "99.9996%")],
)
def test_only_all_codes_read_100_percent(share, text):
    assert percent(share) == text


@pytest.mark.parametrize(("share", "text"), [(1 - 1e-12, "100%"), (0.632, "63.2%")])
def test_an_expectation_may_round(share, text):
    assert expected(share) == text


@pytest.mark.parametrize(("seconds", "text"), [(4.23, "4.2 s"), (95, "1 min 35 s"), (7810, "2 h 10 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("parameters", "text"), [(343e6, "343M"), (1.4e9, "1.4B"), (12345, "12.3k"), (12, "12")])
def test_model_size(parameters, text):
    assert model_size(int(parameters)) == text
