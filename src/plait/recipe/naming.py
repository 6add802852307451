"""Names of sources that are given as folders alone; apart because recipes of others need them as well."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def named_places(places: Iterable[str | Path]) -> dict[str, Any]:
    """Returns checkpoints by the names of their folders, made unique by those of the folders above.

    A trainer's `checkpoint-500` says nothing, so the folder above names it.
    """
    every = list(places)
    parts = [
        [re.sub(r"[^\w.+@-]+", "-", part).strip("-.") for part in Path(place).parts if part not in ("/", "..", "~")]
        for place in every
    ]
    parts = [[part for part in found if part] or ["source"] for found in parts]
    parts = [found[:-1] if re.fullmatch(r"checkpoint-\d+", found[-1]) and found[1:] else found for found in parts]
    deep = max(map(len, parts), default=1)
    for depth in range(1, deep + 1):
        names = ["-".join(found[-depth:]) for found in parts]
        if len(set(names)) == len(names):
            return dict(zip(names, every, strict=True))
    seen: Counter[str] = Counter()
    found_names: dict[str, Any] = {}
    for name, place in zip(["-".join(found[-1:]) for found in parts], every, strict=True):
        seen[name] += 1
        found_names[name if seen[name] == 1 else f"{name}-{seen[name]}"] = place
    return found_names
