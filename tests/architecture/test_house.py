"""The house: floors, quick start, small rooms, and methods that are one file."""

from __future__ import annotations

import ast
import json
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "plait"
FILES = sorted(SOURCE.rglob("*.py"))
LIGHT = [
    SOURCE / "__init__.py",
    SOURCE / "errors.py",
    SOURCE / "registry.py",
    *(SOURCE / "recipe").glob("*.py"),
]
HEAVY = {"torch", "transformers", "datasets", "sklearn", "safetensors", "numpy"}


def functions() -> list[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    found = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.append((file, node))
    return found


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
    return (node.end_lineno or 0) - first.lineno + 1


def test_functions_and_files_are_small() -> None:
    lengths = sorted(body_lines(node) for _, node in functions())
    assert statistics.median(lengths) <= 8
    assert lengths[int(0.9 * len(lengths))] <= 25
    assert {f.name: n for f in FILES if (n := len(f.read_text().splitlines())) > 500} == {}
    assert {f"{f.name}:{n.name}": body_lines(n) for f, n in functions() if body_lines(n) > 60} == {}


def test_no_utils_and_no_banners() -> None:
    assert [f for f in FILES if f.stem in {"utils", "helpers", "misc", "common"}] == []
    banners = [f.name for f in FILES if re.search(r"^\s*#\s*[-=#*]{4,}", f.read_text(), re.MULTILINE)]
    assert banners == []


@pytest.mark.parametrize("module", ["plait", "plait.cli", "plait.cli.app", "plait.recipe", "plait.registry"])
def test_torch_is_imported_when_needed(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def processor_seconds(command: list[str]) -> float:
    """Processor time of one run: the promise is for an idle machine, where it is what the clock shows."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("command", [["-c", "import plait"], ["-m", "plait", "--help"]])
def test_quick_start(command: list[str]) -> None:
    # 0.2 to 0.3 s, by processor; importing torch alone takes several times as long.
    assert min(processor_seconds(command) for _ in range(5)) < 0.6


def imports_of(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


METHODS = ("rules", "gates", "objectives", "methods", "perturbations", "estimators", "cli")
"""Rooms of which every file is registered, by name or by command: nobody imports one by itself."""


def importers() -> dict[str, set[Path]]:
    modules = {".".join(f.relative_to(SOURCE.parent).with_suffix("").parts): f for f in FILES}
    found: dict[str, set[Path]] = {name: set() for name in modules}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                for name in {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}:
                    if name in found and modules[name] != file:
                        found[name].add(file)
    return found


def test_a_small_file_with_one_importer_says_why_it_is_apart() -> None:
    silent = []
    for name, users in importers().items():
        file = SOURCE.parent / Path(*name.split(".")).with_suffix(".py")
        lines = file.read_text().splitlines()
        small = len(lines) < 120 and len(users) <= 1 and not file.stem.startswith("__")
        if small and not set(METHODS) & set(file.parts) and "apart" not in lines[0]:
            silent.append(name)
    assert silent == []


def test_merge_rules_know_torch_alone() -> None:
    allowed = {"torch", "plait.tensors", "plait.merging.rule", "plait.merging.algebra", "plait.errors"}
    for file in (SOURCE / "merging" / "rules").glob("*.py"):
        others = {
            n
            for n in imports_of(file)
            if n.partition(".")[0] not in {"__future__", "typing", "collections", "math"}
        }
        assert {
            n
            for n in others
            if not any(n == a or n.startswith(a + ".") for a in allowed | {"plait.merging.rules"})
        } == set(), file


def test_a_method_is_one_file() -> None:
    from plait.merging.rule import RULES

    files = {f.stem for f in (SOURCE / "merging" / "rules").glob("*.py")} - {"__init__"}
    assert set(RULES) <= files | {"dare_ties"}
    for name in RULES:
        mentions = [f for f in FILES if re.search(rf'register\(\s*"{name}"', f.read_text())]
        assert len(mentions) == 1, name


def test_references_never_import_plait() -> None:
    for file in (ROOT / "tests" / "reference").glob("*.py"):
        if not file.name.startswith("test_"):
            assert not any(n.partition(".")[0] == "plait" for n in imports_of(file)), file


def test_only_two_rooms_know_the_terminal() -> None:
    for file in FILES:
        rooms = {n.partition(".")[0] for n in imports_of(file)} & {"typer", "rich"}
        assert not rooms or "cli" in file.parts or file.name == "progress.py", file


def test_nobody_prints() -> None:
    for file, node in (
        (f, n) for f in FILES for n in ast.walk(ast.parse(f.read_text())) if isinstance(n, ast.Call)
    ):
        assert not (isinstance(node.func, ast.Name) and node.func.id == "print"), file


def test_a_merge_is_inspected_without_torch(tmp_path: Path) -> None:
    task = {"architecture": "BertForSequenceClassification", "kind": "sequence_classification", "sources": ["mood"]}
    tasks = {"mood": {**task, "name": "mood", "problem_type": "single_label_classification", "labels": ["bad", "good"]}}
    sources = {"mood": {"origin": "ckpt/mood", "digest": "0"}}
    record = {"format": 2, "kind": "merged", "tasks": tasks, "sources": sources, "recipe": {}, "versions": {}}
    (tmp_path / "plait.json").write_text(json.dumps(record))
    asked = f"import sys, plait.cli; plait.cli.invoke(['inspect', {str(tmp_path)!r}])"
    code = f"{asked}; print({HEAVY!r} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "set()"
    assert min(processor_seconds(["-m", "plait", "inspect", str(tmp_path)]) for _ in range(3)) < 1.0
