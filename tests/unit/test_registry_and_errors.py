"""Registry, spelling hints, and the list of problems."""

from __future__ import annotations

from typing import Literal

import pytest

from plait.errors import RecipeError, did_you_mean, listed
from plait.registry import Above, Registry, canonical


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


def test_a_name_is_found_however_its_author_spelled_it() -> None:
    registry = make()
    registry.register("My-Rule")(lambda params: params)
    assert "My-Rule" in registry
    assert "my_rule" in list(registry)
    assert registry["my-rule"].name == "my_rule"
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("my_rule")(lambda params: params)


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


class TestOptions:
    """Options are checked by a model made of the signature, wherever they come from."""

    @staticmethod
    def registry() -> Registry:
        registry: Registry = Registry("thing", hint="thing none does nothing")

        @registry.register("first", limits={"rate": (0.0, 1.0), "count": Above(0), "share": Above(0, 1)}, when="Often.")
        def first(
            params: float,
            *,
            rate: float = 0.5,
            count: int = 1,
            share: float | None = None,
            how: Literal["one", "two"] = "one",
            deep: bool = False,
        ) -> float:
            """Returns params.

            Args:
                params: What is changed.
                rate: Rate of change, which
                    takes two lines.
                count: Times.
                share: Share.
                how: Way.
                deep: Depth.

            Raises:
                ValueError: never.
            """
            return params * rate * count

        return registry

    def test_descriptions_and_limits(self) -> None:
        options = self.registry()["first"].options
        assert options["rate"].meaning == "Rate of change, which takes two lines."
        assert options["deep"].meaning == "Depth."
        assert [o.bounds for o in options.values()] == ["0 to 1", "above 0", "above 0 and below 1", "", ""]
        assert [o.type for o in options.values()] == ["float", "int", "float | none", "one | two", "bool"]
        assert self.registry()["first"].when == "Often."

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rate": 2}, "rate is 2 (expected 0 to 1)"),
            ({"rate": "much"}, "rate is 'much' (expected a number)"),
            ({"rate": True}, "rate is True (expected a number)"),
            ({"rate": float("nan")}, "rate is nan (expected a number)"),
            ({"count": 1.5}, "count is 1.5; expected a whole number above 0"),
            ({"count": None}, "count is None; expected a whole number above 0"),
            ({"share": 1}, "share is 1; expected a number above 0 and below 1"),
            ({"how": "twoo"}, "how is 'twoo' (did you mean 'two'?"),
            ({"how": "zzz"}, "how is 'zzz'; expected one or two"),
            ({"deep": 1}, "deep is 1; expected true or false"),
            ({"rate": 2, "deep": "no"}, "thing first: rate is 2 (expected 0 to 1); deep is 'no'; expected"),
        ],
    )
    def test_refused(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(RecipeError) as caught:
            self.registry()["first"].check_values(options)
        assert message in str(caught.value)
        assert str(caught.value).endswith("(thing none does nothing)")

    def test_accepted(self) -> None:
        self.registry()["first"].check_values({"rate": 1, "count": 3, "share": None, "how": "two", "deep": True})

    def test_the_model_is_a_json_schema(self) -> None:
        found = self.registry()["first"].model.model_json_schema()
        assert found["additionalProperties"] is False
        assert found["properties"]["count"] == {
            "default": 1, "description": "Times.", "exclusiveMinimum": 0, "title": "Count", "type": "integer",
        }  # fmt: skip
