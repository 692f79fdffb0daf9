"""Parameters of a request, checked against a dataclass."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from patchifier.app.parameters import checked
from patchifier.config import RequestError


@dataclass(frozen=True)
class Inner:
    year: int | None = None


@dataclass(frozen=True)
class Params:
    name: str
    share: float = 1.0
    loud: bool = False
    sort: Literal["up", "down"] = "up"
    songs: list[str] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)
    form: str = field(default="", metadata={"name": "as"})


def test_values_of_json_and_of_a_query_are_read():
    found = checked(Params, {"name": "a", "share": 2, "inner": {"year": None}, "as": "x"})
    assert found == Params("a", 2.0, form="x")
    texts = {"name": "7", "share": "0.5", "loud": "true", "sort": "down"}
    assert checked(Params, texts, texts=True) == Params("7", 0.5, True, "down")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "name"),
        ({"name": 1}, "name"),
        ({"name": "a", "share": "1"}, "share"),
        ({"name": "a", "share": float("nan")}, "share"),
        ({"name": "a", "share": True}, "share"),
        ({"name": "a", "share": 10**400}, "share"),
        ({"name": "a", "loud": 1}, "loud"),
        ({"name": "a", "sort": "left"}, "sort"),
        ({"name": "a", "songs": ["a", None]}, "songs[1]"),
        ({"name": "a", "songs": ["a"] * 100_001}, "songs"),
        ({"name": "a", "inner": {"year": 1.5}}, "inner.year"),
        ({"name": "a", "inner": {"month": 1}}, "inner.month"),
        ({"name": "a", "form": "x"}, "form"),
    ],
)
def test_a_value_of_another_kind_is_named(given, named):
    with pytest.raises(RequestError, match=named.replace("[", r"\[")):
        checked(Params, given)


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", "", "yes"])
def test_a_text_that_is_no_number_is_named(text):
    with pytest.raises(RequestError, match="share"):
        checked(Params, {"name": "a", "share": text}, texts=True)
