"""Weave several fine-tuned language models into one.

    merged = plait.merge({"sst2": "ckpt/sst2", "trec": "ckpt/trec"}, data={"sst2": "sst2.parquet", …}, out="merged")
    merged.predict(["What a film!"])          # every task from one encoder pass

The names below are imported when first used, so that `import plait` stays quick. One thing happens here:
transformers is told, once it is there, which classes our ensembles are (`plait.autoclasses`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from plait import autoclasses

if TYPE_CHECKING:
    from plait.api import (
        amalgamate,
        compare,
        convert,
        ensemble,
        estimate,
        evaluate,
        export,
        finetune,
        inspect,
        load,
        merge,
        methods,
        open_artifact,
        posteriors,
        report,
        run,
        schema,
    )
    from plait.errors import PlaitError
    from plait.progress import set_verbosity

__version__ = "0.1.0"
__all__ = [
    "PlaitError",
    "amalgamate",
    "compare",
    "convert",
    "ensemble",
    "estimate",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "load",
    "merge",
    "methods",
    "open_artifact",
    "posteriors",
    "report",
    "run",
    "schema",
    "set_verbosity",
]
ELSEWHERE = {"PlaitError": "plait.errors", "set_verbosity": "plait.progress"}
"""Where names live that need none of the machinery."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'plait' has no attribute {name!r}")
    return getattr(importlib.import_module(ELSEWHERE.get(name, "plait.api")), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


autoclasses.install()
