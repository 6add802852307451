"""Commands on the pretended accelerator: `python -m tests.accelerated '[["evaluate", "model", …], …]'`.

Each prints what it prints, then a line that names the devices on which whole models ran.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook
from transformers import PreTrainedModel

from plait.cli import invoke
from tests import pretend

MARK = "ran on "


def main(commands: list[list[str]]) -> int:
    """Runs the commands until one fails."""
    torch.set_num_threads(1)
    pretend.register()
    devices: set[str] = set()

    def note(module: Any, *_: Any) -> None:
        if isinstance(module, PreTrainedModel):
            devices.add(module.device.type)

    register_module_forward_hook(note)
    for arguments in commands:
        devices.clear()
        if code := invoke(arguments):
            return code
        sys.stdout.write(f"{MARK}{' '.join(sorted(devices))}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(json.loads(sys.argv[1])))
