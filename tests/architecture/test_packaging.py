"""What the package says it needs: all that it imports, in versions that the tests run on."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn"}
OPTIONAL = {"gguf", "lm_eval", "optuna"}
WIDER = {"torch"}
"""Whose lower bound is below what the tests run on."""


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def bounds(requirements: list[str]) -> dict[str, str]:
    found = [re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", line) for line in requirements]
    assert all(found), "every requirement has a lower bound"
    return {canonical(match[1]): match[2] for match in found if match}


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_what_is_imported_is_declared() -> None:
    names = set().union(*(imported(file) for file in (ROOT / "src").rglob("*.py")))
    others = names - set(sys.stdlib_module_names) - {"plait"} - OPTIONAL
    declared = bounds(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]["demo"]
    known = declared.keys() | {canonical(re.split(r"[><=\[]", line)[0]) for line in extras}
    packages = {canonical(PACKAGES.get(name, name)) for name in others}
    assert packages <= known
    assert {"scipy", "pyarrow", "accelerate"} <= declared.keys()


def test_lower_bounds_are_tested() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = {canonical(name): version for name, _, version in (line.partition("==") for line in lines) if version}
    for name, bound in bounds(PROJECT["dependencies"]).items():
        if name not in WIDER:
            depth = len(numbers(bound))
            assert numbers(bound) == numbers(tested[name])[:depth], f"{name}: bound {bound}, tested {tested[name]}"
