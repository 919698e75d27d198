"""What a person sees of an error."""

import errno
import os
import subprocess
import sys
import textwrap
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fvq.runtime.errors import UserError, describe_validation_error, one_line_errors


class Cat(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["cat"]
    lives: int = Field(ge=1)


class Dog(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["dog"]
    tricks: tuple[str, ...]


class Home(BaseModel):
    model_config = ConfigDict(extra="forbid")
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    guests: dict[str, Cat] = {}
    rooms: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _room_for_all(self):
        if len(self.guests) > self.rooms:
            raise ValueError(f"rooms: {self.rooms} are too few")
        return self


def described(content, given=True):
    with pytest.raises(ValidationError) as caught:
        Home.model_validate(content)
    return describe_validation_error(caught.value, "home.yaml", content if given else None)


CAT = {"kind": "cat", "lives": 9}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"pet": {"kind": "cat", "lives": 0}}, "pet.lives: should be greater than or equal to 1, not 0"),
        ({"pet": {"kind": "cat"}}, "pet.lives: is missing"),
        ({"pet": {**CAT, "cat": 1}}, "pet.cat: is no known parameter"),
        ({"pet": {"kind": "dog", "tricks": ["sit", 3]}}, "pet.tricks.1: should be a valid string, not 3"),
        ({"pet": {"kind": "cow"}}, "pet.kind: should be one of 'cat', 'dog', not 'cow'"),
        ({"pet": {"lives": 9}}, "pet.kind: is missing"),
        (
            {"pet": CAT, "guests": {"a.b": {**CAT, "lives": "x"}}},
            "guests.a.b.lives: should be a valid integer, not 'x'",
        ),
        ({"pet": CAT, "guests": {1: CAT}}, "guests.1: should be a valid string, not 1"),
        ({"pet": CAT, "guests": {"tom": CAT, "tim": CAT}}, "rooms: 1 are too few"),
        ({}, "pet: is missing"),
        ([], "should be a mapping of keys to values, not []"),
        (
            {"pet": CAT, "a": 1, "b": 1, "c": 1, "d": 1},
            "a: is no known parameter; b: is no known parameter; c: is no known parameter (and 1 more)",
        ),
    ],
)
def test_keys_are_those_that_were_typed(content, expected):
    assert described(content) == f"home.yaml: {expected}"


def test_without_the_content_keys_are_pydantics():
    assert described({"pet": {"kind": "cat"}}, given=False) == "home.yaml: pet.cat.lives: is missing"


def test_long_and_broken_values_stay_on_one_line():
    text = described({"pet": CAT, "rooms": "a\nb " * 1000})
    assert "\n" not in text
    assert len(text) < 200
    assert text.startswith("home.yaml: rooms: should be a valid integer, not 'a")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("params.yaml: rows: is missing"), "params.yaml: rows: is missing"),
        (UserError("two\n  lines"), "two lines"),
        (OSError(errno.ENOSPC, "No space left on device", "a.json"), "a.json: No space left on device"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "from", None, "to"),
            "from: No such file or directory",
        ),
        (OSError("something else"), "something else"),
        (MemoryError(), "MemoryError"),
        (MemoryError("4 GiB"), "4 GiB"),
    ],
)
def test_mendable_errors_are_one_line_and_status_1(capsys, monkeypatch, error, line):
    monkeypatch.delenv("FVQ_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as caught, one_line_errors():
        raise error
    assert caught.value.code == 1
    assert capsys.readouterr().err == f"fvq: error: {line}\n"


def test_the_traceback_is_there_for_who_asks(monkeypatch):
    monkeypatch.setenv("FVQ_TRACEBACK", "1")
    with pytest.raises(UserError), one_line_errors():
        raise UserError("x")


def test_other_errors_stay_as_they_are():
    with pytest.raises(ZeroDivisionError), one_line_errors():
        1 / 0  # noqa: B018


LEFT_READER = """
    import sys
    from fvq.runtime.errors import one_line_errors

    with one_line_errors():
        print("some words" * int(sys.argv[1]))
"""


@pytest.mark.parametrize("times", [1, 100_000])  # what waits for the end, and what does not
def test_a_reader_that_leaves_is_no_error(times):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", textwrap.dedent(LEFT_READER), str(times)]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert ended.returncode == 1 and ended.stderr == b""
