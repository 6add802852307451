"""Registry, spelling hints, and the list of problems."""

from __future__ import annotations

import pytest

from plait.errors import RecipeError, did_you_mean, listed
from plait.registry import Registry, canonical


def make() -> Registry:
    registry: Registry = Registry("thing")

    @registry.register("first_one", paper="arXiv:1")
    def first(params: float, *, rate: float = 0.5, times: int) -> float:
        """Returns params.

        More words.
        """
        return params * rate * times

    return registry


def test_signature_is_the_schema() -> None:
    entry = make()["first_one"]
    assert entry.summary == "Returns params."
    assert entry.inputs == ("params",)
    assert entry.options["rate"].default == 0.5
    assert entry.options["times"].required
    assert entry.facts["paper"] == "arXiv:1"


def test_dashes_and_case_are_forgiven() -> None:
    assert make()["First-One"].name == "first_one"
    assert canonical(" Mask-Nodes ") == "mask_nodes"


def test_unknown_name_and_option() -> None:
    registry = make()
    with pytest.raises(
        RecipeError, match=r"unknown thing 'frst_one' \(did you mean 'first_one'\? known: first_one\)"
    ):
        registry["frst_one"]
    with pytest.raises(RecipeError, match=r"first_one has no option 'rat' \(did you mean 'rate'"):
        registry["first_one"].check({"rat": 1})


def test_a_name_is_registered_once() -> None:
    registry = make()
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("first_one")(lambda params: params)


def test_hint_without_a_close_match() -> None:
    assert did_you_mean("zzz", ["average", "fisher"]) == " (known: average, fisher)"
    assert did_you_mean("zzz", []) == " (known: none)"


def test_listed_says_how_many_more() -> None:
    assert listed("abc", limit=2) == "a; b; and 1 more"
    assert listed("ab") == "a; b"
