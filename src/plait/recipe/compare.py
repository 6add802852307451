"""The recipe of a comparison: checkpoints, data to combine them with, rows to test on, and what to try."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field

from plait.label_names import told
from plait.recipe.fields import Data, LabelNames, PlainName, Short, Strict, Text
from plait.registry import canonical

UNITS = {"s": 1, "m": 60, "h": 3600}
WAYS = ("merge", "ensemble", "amalgamate")
"""The ways of combining checkpoints, besides keeping them as they are."""


def seconds_of(budget: str) -> float:
    """Returns the seconds in `90`, `90s`, `20m`, `1h` or `1h30m`.

    Raises:
        ValueError: something else, or nothing.
    """
    text = budget.strip().lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smh]?)", text)
    if not re.fullmatch(r"(\s*\d+(\.\d+)?\s*[smh]?)+", text) or (len(parts) > 1 and not all(u for _, u in parts)):
        raise ValueError("expected a time such as 90s, 20m or 1h30m")
    found = sum(float(number) * UNITS[unit or "s"] for number, unit in parts)
    if found <= 0:
        raise ValueError("expected a time above 0, such as 20m")
    return found


def _budget(value: str) -> str:
    seconds_of(value)
    return value


def _names(value: Any) -> Any:
    found = told(value) if isinstance(value, str) else value
    return [canonical(name) if isinstance(name, str) else name for name in found] if isinstance(
        found, list | tuple
    ) else found  # fmt: skip


Budget = Annotated[
    str,
    BeforeValidator(lambda value: f"{value:g}" if isinstance(value, int | float) else value),
    AfterValidator(_budget),
]
Methods = Annotated[tuple[str, ...], BeforeValidator(_names), Short()]
Ways = Annotated[tuple[Literal["merge", "ensemble", "amalgamate"], ...], BeforeValidator(_names), Short()]


class ComparedSource(Strict):
    """One checkpoint of a comparison.

    Attributes:
        model: Checkpoint: a folder or a Hub id.
        data: Texts of this source, with labels where a method needs them; never the rows to test on.
        task: Task of this source; sources that name the same task share one head. Default: the source's name, or one
            task for all where all have the same labels.
        labels: Names of the head's labels, in its order, for heads of LABEL_0, LABEL_1.
        revision: Branch, tag or commit of a Hub id.
    """

    model: Text
    data: Data | None = None
    task: PlainName | None = None
    labels: LabelNames | None = None
    revision: str | None = None


Compared = Annotated[
    ComparedSource, BeforeValidator(lambda v: {"model": v} if isinstance(v, str | Path) else v), Short()
]


class CompareRecipe(Strict):
    """A comparison: every way in which some checkpoints can become one model, scored on the same rows.

    Attributes:
        combine: Kind of job.
        sources: Checkpoints by name: a folder or a Hub id, or a mapping with data.
        base: Model that the sources were fine-tuned from. Default: the one that they record.
        test: Labelled rows by source, to score on; a name of your own is scored over all labels. Default: cut from the
            data.
        text: Texts without labels that students learn from. Default: those of the data.
        only: Ways to try: merge, ensemble, amalgamate. Default: all that are possible.
        methods: Methods to try, such as regmean,ties,refine. Default: all, the best tested first.
        budget: Time that may be spent, such as 20m. Default: that of the default candidates.
        prefer: What decides between choices that are level.
        keep: Candidates whose models stay on disk: the choice and the best of each way, or all.
        limit: Size of a random subset of each test set.
        test_share: Share of the data that becomes the test set where none is given.
        batch_size: Batch size of scoring; does not change the result.
        max_length: Token limit per text. Default: that of each method and model.
        seed: Random seed.
        report_to: Tracker that transformers reports to, such as tensorboard.
        output: Folder to write.
        trust_remote_code: Let checkpoints run code of their own.
    """

    PANELS: ClassVar[dict[str, tuple[str, ...]]] = {
        "Sources and data": ("sources", "base", "test", "text", "limit", "test_share", "trust_remote_code"),
        "Candidates": ("only", "methods", "budget", "prefer", "keep"),
        "Scoring": ("batch_size", "max_length", "seed", "report_to"),
        "Output": ("output",),
    }

    combine: Literal["compare"] = "compare"
    sources: dict[PlainName, Compared] = Field(min_length=1)
    base: Text | None = None
    test: dict[PlainName, Data] = Field(default_factory=dict)
    text: Data | None = Field(default=None, validation_alias=AliasChoices("text", "texts"))
    only: Ways = ()
    methods: Methods = ()
    budget: Budget | None = None
    prefer: Literal["accuracy", "size", "speed", "calibration"] = "accuracy"
    keep: Literal["best", "all"] = "best"
    limit: int | None = Field(default=None, ge=2)
    test_share: float = Field(default=0.5, gt=0, lt=1)
    batch_size: int = Field(default=32, ge=1)
    max_length: int | None = Field(default=None, ge=4)
    seed: int = Field(default=0, ge=0, lt=2**32)
    report_to: str = "none"
    output: Text
    trust_remote_code: bool = False

    @property
    def seconds(self) -> float | None:
        """Returns the seconds of the budget; None without one."""
        return None if self.budget is None else seconds_of(self.budget)
