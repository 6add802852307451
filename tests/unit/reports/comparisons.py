"""A comparison as it lies on disk, made up: every part that a page can show, with failures and what was left out."""

from __future__ import annotations

import math
from typing import Any

TASKS = ("sst2", "trec", "cola", "mrpc", "ag_news", "reviews_music")
LAYERS = ["embeddings", *(f"layer {i}" for i in range(6))]
RELATIVE = {
    "separate": 1.0,
    "merge/regmean": 0.951,
    "merge/fisher": 0.872,
    "merge/ties": 0.848,
    "merge/average": 0.765,
    "merge/actmerge": 0.947,
    "merge/default+refine": 0.981,
    "ensemble/separate": 1.012,
    "ensemble/distilled": 0.992,
    "amalgamate/auto": 0.966,
    "amalgamate/uhc": 0.901,
}
BODY = 90_900_000


def wave(*at: float) -> float:
    """Returns a number in 0 to 1 that depends on all given."""
    return 0.5 + 0.5 * math.sin(sum((i + 1.7) * (x + 0.6) * 2.3 for i, x in enumerate(at)))


def score(own: float, relative: float, at: int) -> dict[str, Any]:
    value, half = min(own * relative, 0.999), 0.018 + 0.006 * wave(at, relative)
    found = {"metric": "accuracy", "value": value, "low": value - half, "high": min(value + half, 1.0)}
    return found | {"relative": relative, "relative_low": relative - half, "relative_high": relative + half}


def candidate(name: str, relative: float, tasks: tuple[str, ...]) -> dict[str, Any]:
    way, seed = name.partition("/")[0], len(name)
    own = {task: 0.72 + 0.2 * wave(i, 3) for i, task in enumerate(tasks)}
    by_task = {
        task: relative + (0 if way == "separate" else 0.03 * (wave(seed, i) - 0.5))
        for i, task in enumerate(tasks)
    }
    worst = min(by_task, key=lambda task: by_task[task])
    several = name in ("separate", "ensemble/separate")
    trained = way == "amalgamate" or name == "ensemble/distilled"
    return {
        "id": name,
        "way": way,
        "method": name.rpartition("/")[2],
        "title": name.replace("/", " "),
        "status": "done",
        "reason": None,
        "folder": None if several else f"candidates/{name.replace('/', '-')}",
        "recipe": None
        if way == "separate"
        else {
            "combine": way,
            "sources": {t: {"model": f"ckpt/{t}"} for t in tasks},
            "method": {"name": name.rpartition("/")[2]},
            "output": name.replace("/", "-"),
        },
        "cell": f"{abs(hash(way)) % 1000:03d}" + "c0ffee" * 4,
        "scores": {task: score(own[task], by_task[task], i) for i, task in enumerate(tasks)},
        "mean_relative": relative,
        "interval": [relative - 0.012, relative + 0.012],
        "worst": {"task": worst, "relative": by_task[worst]},
        "parameters": 22_700_000 * (6 if several else 1),
        "bytes": BODY * (6 if several else 1) + 9_000 * seed,
        "latency": {
            "1": 0.0061 * (5.8 if several else 1) + 1e-5 * seed,
            "32": 0.0021 * (5.8 if several else 1),
        },
        "seconds": None if way == "separate" else 240.0 + seed if trained else 0.9 + 0.7 * seed,
        "calibration": {
            task: {
                "ece": 0.02 + 0.08 * wave(seed, i),
                "bins": [
                    {
                        "confidence": (b + 0.5) / 10,
                        "accuracy": max(0.0, (b + 0.5) / 10 - 0.08 * wave(seed, i, b)),
                        "count": int(6 + 150 * (b / 9) ** 3),
                    }
                    for b in range(2, 10)
                ],
            }
            for i, task in enumerate(tasks)
        },
        "history": [
            {"step": 25 * s, "name": "loss", "value": 1.4 * math.exp(-s / 7) + 0.2 + 0.05 * wave(seed, s)}
            for s in range(20)
        ]
        if trained
        else [],
        "routing": {
            "labels": ["positive", "negative", "location", "number", "sports"],
            "teachers": ["sst2", "trec", "ag_news"],
            "share": [
                [0.91, 0.02, 0.07],
                [0.88, 0.05, 0.07],
                [0.04, 0.9, 0.06],
                [0.03, 0.92, 0.05],
                [0.1, 0.08, 0.82],
            ],
        }
        if way == "amalgamate"
        else None,
        "diversity": {"members": 6, "disagreement": 0.083, "oracle_accuracy": 0.951, "diversity": 0.041}
        if way == "ensemble"
        else None,
    }


def comparison(
    names: tuple[str, ...] = TASKS, only: tuple[str, ...] = tuple(RELATIVE), **changes: Any
) -> dict[str, Any]:
    """Returns a comparison of so many tasks and candidates; `changes` replace its parts."""
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return {
        "schema": 1,
        "plait": "0.1.0",
        "created": "2026-12-01T11:20:00Z",
        "seconds": 571.3,
        "machine": {
            "processor": "x86_64",
            "cores": 2,
            "threads": 2,
            "torch": "2.9.0",
            "transformers": "5.23.0",
        },
        "recipe": {
            "combine": "compare",
            "sources": {t: {"model": f"ckpt/{t}"} for t in names},
            "output": "comparison",
        },
        "sources": [
            {
                "name": t,
                "model": f"ckpt/{t}",
                "architecture": "BertForSequenceClassification",
                "base": "all-MiniLM-L6-v2",
                "tokenizer": "BertTokenizer",
                "parameters": 22_700_000,
                "bytes": BODY,
                "labels": ["negative", "positive"] if i % 2 else ["a", "b", "c"],
                "task": t,
                "license": "apache-2.0" if i else None,
                "digest": f"{i}" * 32,
            }
            for i, t in enumerate(names)
        ],
        "tasks": [
            {
                "name": t,
                "metric": "accuracy",
                "rows": 500,
                "test_from": "given" if i else "cut from data",
                "overlap": 3 if i == 2 else 0,
                "labels": None,
            }
            for i, t in enumerate(names)
        ],
        "possible": [
            {"way": "merge", "possible": True, "reason": "one base, heads of different tasks"},
            {"way": "soup", "possible": False, "reason": "the sources have different labels"},
            {"way": "amalgamate", "possible": True, "reason": "texts of one kind"},
        ],
        "candidates": [
            *(candidate(name, RELATIVE[name], names) for name in only),
            {
                "id": "merge/breadcrumbs",
                "way": "merge",
                "method": "breadcrumbs",
                "title": "merge breadcrumbs",
                "status": "failed",
                "reason": "layer.3.output.dense.weight of cola contains NaN or Inf",
            },
            {
                "id": "amalgamate/vkd",
                "way": "amalgamate",
                "method": "vkd",
                "title": "amalgamate vkd",
                "status": "skipped",
                "reason": "beyond the budget of 10 min",
                "estimated_seconds": 1320,
                "estimated_bytes": 2.1e9,
            },
        ],
        "pareto": ["ensemble/separate", "ensemble/distilled", "merge/default+refine", "merge/regmean"],
        "best": "ensemble/separate",
        "recommended": {
            "id": "merge/default+refine",
            "prefer": "size",
            "level_with": ["ensemble/distilled"],
            "reason": "It keeps 98.1 % of the separate models' scores in a sixth of their size, and nothing of its "
            "size is better by more than its interval.",
        },
        "conflicts": {
            "layers": LAYERS,
            "origin": "base",
            "chance": 0.0,
            "skipped": [],
            "pairs": [
                {
                    "a": a,
                    "b": b,
                    "cosine": [-0.03 + 0.32 * wave(i, j) for j in range(len(LAYERS))],
                    "sign": [0.5 + 0.12 * wave(i, j) for j in range(len(LAYERS))],
                }
                for i, (a, b) in enumerate(pairs)
            ],
        },
        "importance": {
            t: {
                "heads": [[1e-4 * wave(i, x, h) ** 3 for h in range(12)] for x in range(6)],
                "neurons": [1e-6 * wave(i, x) for x in range(6)],
            }
            for i, t in enumerate(names)
        },
        "notes": [
            "sst2: one file was given, so its test rows were cut from it.",
            "cola: 3 of 500 test rows also stand in the data that statistics were estimated on.",
        ],
    } | changes
