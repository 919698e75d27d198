"""Numbers as a person reads them: no more digits than they carry."""

import math


def significant(value: float, digits: int = 3) -> str:
    """``value`` with so many significant digits, thousands in groups, no exponent: 276.6 → 277, 0.00714 → 0.00714."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def supported(value: float, spread: float | None) -> str:
    """``value`` with the decimals that its spread supports: those to the spread's first significant digit.

    12.3456 with a spread of 0.2 is "12.3", with 3 it is "12". Without a spread there are 3 significant digits; with one
    of 0 (or of rounding errors) 4. Thousands are in groups, and there is no exponent.
    """
    if spread is None:
        return significant(value)
    if not (math.isfinite(spread) and spread >= 0):
        raise ValueError(f"spread: must be a finite number of at least 0, not {spread}")
    if spread <= 1e-12 * abs(value):
        return significant(value, 4)
    decimals = -math.floor(math.log10(float(f"{spread:.0e}")))
    return f"{round(value, decimals) + 0.0:,.{max(decimals, 0)}f}"


def percent(share: float) -> str:
    """A share in percent with one decimal, two below 1%. Only exactly 1 reads 100%, and only exactly 0 reads 0%."""
    if share in (0, 1):
        return f"{share:.0%}"
    decimals = 1 if share >= 0.01 else 2
    while decimals < 6 and (round(100 * share, decimals) in (0, 100)):
        decimals += 1
    if round(100 * share, decimals) == 100:
        return "just under 100%"
    return f"{100 * share:.{decimals}f}%"


def expected(share: float) -> str:
    """An expectation such as a usage ceiling, in percent: it may round to 100%."""
    return "100%" if share > 0.99995 else percent(share)


def uniform_ceiling(tokens: int, codebook_size: int) -> float:
    """The share of the codes that so many uniformly drawn tokens reach on average: 1 - (1 - 1/K)^N."""
    return 1 - (1 - 1 / codebook_size) ** tokens


def count(number: float) -> str:
    """A whole number with its thousands in groups."""
    return f"{number:,.0f}"


def grouped(text: str) -> str:
    """A text as it is, but one of digits with its thousands in groups."""
    return count(int(text)) if text.isdecimal() else text


def model_size(parameters: int) -> str:
    """A number of parameters as tables print it: 343M, 1.4B, 12k."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            return significant(parameters / unit, 2 if parameters < 10 * unit else 3) + name
    return str(parameters)


def duration(seconds: float) -> str:
    """Wall time: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
