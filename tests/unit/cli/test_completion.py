"""Shells complete commands and options."""

from __future__ import annotations

import os
import subprocess
import sys


def completed(line: str) -> str:
    asked = {"_PLAIT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    found = subprocess.run(
        [sys.executable, "-m", "plait"],
        env={**os.environ, **asked, "_TYPER_COMPLETE_ARGS": line},
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout


def test_commands_and_options_are_completed() -> None:
    assert completed("plait mer").split() == ["merge"]
    assert "--predictions" in completed("plait evaluate --pre")
