"""The flat JSON of one evaluation: figures and the protocol that makes them comparable."""

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from fvq.runtime.errors import UserError
from fvq.runtime.files import read_json

SCHEMA: dict[str, Any] = json.loads(files(__package__).joinpath("evaluation.schema.json").read_text(encoding="utf-8"))
"""JSON schema (draft 2020-12) of a record, with a description and a unit for each figure."""

NONE = "none"
"""The value of a protocol field that governs figures which the evaluation was not asked for."""

OF_NEIGHBOURS = (
    "protocol_neighbours",
    "protocol_density_neighbours",
    "protocol_neighbours_on",
    "protocol_neighbours_reference_images",
    "protocol_distances",
)
"""The protocol fields that govern precision, recall, density and coverage alone."""


@dataclass(frozen=True)
class Record:
    """One evaluation's result, as its file holds it."""

    name: str
    """The file, as errors name it."""
    values: Mapping[str, float | int | str]

    @property
    def protocol(self) -> dict[str, str]:
        """What two records must share to be compared: `protocol` and the fields `protocol_…`."""
        return {name: str(value) for name, value in self.values.items() if name.startswith("protocol")}

    @property
    def figures(self) -> dict[str, float | int]:
        """The numbers, without the number of samples and the seed."""
        return {
            name: value
            for name, value in self.values.items()
            if not isinstance(value, str) and name not in ("samples", "seed")
        }

    def spread(self, figure: str) -> float | None:
        """The standard deviation that the record gives for a figure: `…_spread` of the figure itself, or `…_std`.

        The latter is that of a mean's parts (groups of the Inception Score, subsets of the kernel distance), which is
        more than the mean's own. What is extrapolated from a figure has its spread. None where there is neither, or 0,
        as of a single group.
        """
        name = figure.removesuffix("_infinity")
        return self.figures.get(f"{name}_spread") or self.figures.get(f"{name}_std") or None


@dataclass(frozen=True)
class Row:
    """One figure of two records; None where a record lacks it or its spread."""

    figure: str
    first: float | int | None
    second: float | int | None
    first_spread: float | None
    second_spread: float | None

    @property
    def difference(self) -> float | int | None:
        """second - first"""
        return None if self.first is None or self.second is None else self.second - self.first

    @property
    def difference_spread(self) -> float | None:
        """sqrt(a^2 + b^2) of both spreads; None where one lacks."""
        if self.first_spread is None or self.second_spread is None:
            return None
        return math.hypot(self.first_spread, self.second_spread)

    @property
    def exceeds_spread(self) -> bool | None:
        """Whether the difference is more than 2 sqrt(a^2 + b^2) of both spreads; None where one lacks."""
        if self.difference is None or self.difference_spread is None:
            return None
        return abs(self.difference) > 2 * self.difference_spread


def read_record(path: Path) -> Record:
    """The record in a file.

    Raises:
        UserError: the file is missing, no JSON, or no record of an evaluation (see ``check_record``).
    """
    return check_record(read_json(path), str(path))


def check_record(values: Any, name: str) -> Record:
    """A record of ``values`` as JSON gives them; ``name`` is the file, for the error.

    Raises:
        UserError: what ``SCHEMA`` refuses, or a number that is not finite.
    """
    if not isinstance(values, dict):
        raise UserError(f"{name}: holds no evaluation, which is a mapping of names to figures and protocol fields")
    missing = [field for field in SCHEMA["required"] if field not in values]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"{name}: holds no complete evaluation: lacks {', '.join(missing[:3])}{more}")
    for key, value in values.items():
        rules = list(_rules(key))
        if not rules:
            raise UserError(f"{name}: {key} is no known figure, and no field of an evaluation")
        for rule in rules:
            wanted = _violated(rule, value)
            if wanted:
                raise UserError(f"{name}: {key} must be {wanted}, not {_shortened(value)}")
    return Record(name, values)


def compare(first: Record, second: Record) -> list[Row]:
    """The figures of both records, in the first's order, then those that the second alone has.

    Every field of the protocol must be the same, but for two freedoms. `protocol_reference` only says where the
    reference lay: its SHA-256 counts. And the score, the neighbours and the seeds govern some figures only: where one
    record has "none" there, or did not draw, it lacks these figures, and the others compare; and so it is with measures
    whose weights one of them lacked (`protocol_lpips_…`). Two different seeds of one draw are refused, since the
    groups, subsets or halves are others. Versions and facts of the samples may differ.

    Raises:
        UserError: of different protocols; names each field that differs, and both values. No figure that both have.
    """
    differing = _differing(first.protocol, second.protocol)
    if differing:
        parts = [
            f"{field} is {_stated(first.protocol, field)} in {first.name} and "
            f"{_stated(second.protocol, field)} in {second.name}"
            for field in differing
        ]
        raise UserError(f"{first.name} and {second.name} are of different protocols: {'; '.join(parts)}")
    if not first.figures.keys() & second.figures.keys():
        raise UserError(f"{first.name} and {second.name} have no figure in common")
    names = dict.fromkeys([*first.figures, *second.figures])
    return [
        Row(name, first.figures.get(name), second.figures.get(name), first.spread(name), second.spread(name))
        for name in names
        if not _is_spread(name, names)
    ]


def _differing(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    """The protocol fields that keep two records from being compared."""
    return [
        field
        for field in dict.fromkeys([*first, *second])
        if first.get(field) != second.get(field) and not _is_excused(field, first, second)
    ]


def _is_excused(field: str, first: Mapping[str, str], second: Mapping[str, str]) -> bool:
    """Whether figures that both records have compare although this field differs."""
    if field == "protocol_reference":
        return first["protocol_reference_sha256"] == second["protocol_reference_sha256"]
    if field == "protocol_seed":
        ours, theirs = _seeds(first[field]), _seeds(second[field])
        return all(ours[drawn] == theirs[drawn] for drawn in ours.keys() & theirs.keys())
    if field == "protocol_neighbours_sha256":
        return NONE in (first["protocol_neighbours"], second["protocol_neighbours"])
    if field == "protocol_score" or field in OF_NEIGHBOURS:
        return NONE in (first[field], second[field])
    return field.startswith("protocol_lpips_")


def _seeds(text: str) -> dict[str, str]:
    """The seed of each draw, by the draw's name."""
    if text == NONE:
        return {}
    return {drawn: seed for drawn, _, seed in (part.rpartition(" ") for part in text.split(", "))}


def _stated(protocol: Mapping[str, str], field: str) -> str:
    return repr(protocol[field]) if field in protocol else "missing"


def _is_spread(name: str, names: Mapping[str, None]) -> bool:
    """Whether a number is the spread of another one."""
    return any(name.removesuffix(ending) in names for ending in ("_spread", "_std") if name.endswith(ending))


def _rules(key: str) -> Iterator[Mapping[str, Any]]:
    """What the schema says of a key; nothing of an unknown one."""
    if key in SCHEMA["properties"]:
        yield SCHEMA["properties"][key]
    for pattern, rule in SCHEMA["patternProperties"].items():
        if re.search(pattern, key):
            yield rule


def _violated(rule: Mapping[str, Any], value: Any) -> str | None:
    """What a value must be by a rule of the schema, where it is not."""
    if rule["type"] == "string":
        if isinstance(value, str) and value and re.search(rule.get("pattern", ""), value):
            return None
        return "64 hexadecimal digits" if "pattern" in rule else "a text"
    low, high = rule.get("minimum", -sys.float_info.max), rule.get("maximum", sys.float_info.max)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and low <= value <= high and (rule["type"] == "number" or value == int(value)):
        return None
    wanted = "a finite number" if rule["type"] == "number" else "a whole number"
    if "maximum" in rule:
        return f"{wanted} of {low} to {high}"
    return f"{wanted} of at least {low}" if "minimum" in rule else wanted


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
