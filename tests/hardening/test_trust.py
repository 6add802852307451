"""Wherever transformers could ask whether code may run, it is told beforehand."""

from __future__ import annotations

import ast
from pathlib import Path

import plait

SOURCE = Path(plait.__file__).parent
LOADS = {"from_pretrained", "from_config"}


def test_every_load_says_whether_code_may_run() -> None:
    """A call gives `trust_remote_code`, or options that do; `EnsembleConfig` and `super()` belong to us."""
    silent = []
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr in LOADS and "super()" not in ast.unparse(node.func):
                told = {keyword.arg for keyword in node.keywords}
                if "trust_remote_code" not in told and None not in told:
                    silent.append(f"{file.name}:{node.lineno}: {ast.unparse(node)}")
    assert silent == []


def test_no_name_is_looked_up_in_transformers() -> None:
    """`getattr(transformers, …)` takes a literal or a table of its own, never what a file says."""
    found = []
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
                owner, name = ast.unparse(node.args[0]), node.args[1]
                if owner == "transformers" and not isinstance(name, ast.Constant | ast.JoinedStr | ast.IfExp):
                    found.append(f"{file.name}:{node.lineno}")
    assert found == []
