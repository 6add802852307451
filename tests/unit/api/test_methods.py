"""What `plait methods` lists: everything that a recipe can name."""

from __future__ import annotations

import importlib
import pkgutil
from itertools import chain

import pytest

import plait
from plait.api.registries import KINDS
from plait.registry import Registry


def test_every_registry_is_listed() -> None:
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages(plait.__path__, "plait.")
        if not module.name.endswith("__main__")
    ]
    values = chain.from_iterable(vars(module).values() for module in modules)
    known = {id(value): value for value in values if isinstance(value, Registry)}
    assert {value.kind for value in known.values()} == {value.kind for value in KINDS.values()}
    assert known.keys() == {id(value) for value in KINDS.values()}


@pytest.mark.parametrize("name", ["mask-nodes", "importance diagonal", "gram"])
def test_importances_are_explained(name: str) -> None:
    ((key, about),) = plait.methods(name).items()
    assert key.startswith("importance ")
    assert about["needs"] == ["data"]
    assert about["summary"]
