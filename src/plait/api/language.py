"""Language models evaluated: likelihood of texts, tasks of lm-evaluation-harness; apart from what scores heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plait.checkpoints.checkpoint import Checkpoint
from plait.data import Examples
from plait.data.reading import read
from plait.errors import RecipeError
from plait.evaluation.harness import check_harness, harness_scores, primary_in
from plait.evaluation.language import PRIMARY, language_outcome
from plait.evaluation.scores import Evaluation, TaskScores, name_data
from plait.merging.merged import Merged
from plait.merging.scores import language_scores_of


@dataclass(frozen=True)
class Given:
    """Data to score on, and how much of it."""

    data: Any
    out_of_scope: Any
    examples: int | None
    seed: int

    def read(self, entry: Any) -> Examples:
        """Returns the rows of one entry, or a random subset of them."""
        return read(entry, limit=self.examples, seed=self.seed)

    def tables(self, tasks: tuple[str, ...] = ("model",)) -> dict[str, Examples]:
        """Returns the rows by task; a model with one task takes entries of any name, each a row of its own."""
        named = name_data(self.data, tasks, free=len(tasks) == 1)
        return {name: self.read(entry) for name, entry in named.items()}


def harness_tasks(tasks: str | Sequence[str] | None, data: Any) -> tuple[str, ...]:
    """Returns names of tasks, given in a list or with commas between them.

    Raises:
        RecipeError: neither tasks nor data, or tasks without what knows them.
    """
    every = tasks.split(",") if isinstance(tasks, str) else tasks or ()
    names = tuple(dict.fromkeys(name.strip() for name in every if name.strip()))
    check_harness(names)
    if data is None and not names:
        raise RecipeError("no data given (expected --data FILE or --data TASK=FILE; language models: or --tasks NAME)")
    return names


def is_language(opened: Any) -> bool:
    """Returns whether what was opened is a language model, merged or plain."""
    if isinstance(opened, Merged):
        return opened.language is not None
    return isinstance(opened, Checkpoint) and opened.objective is not None


def evaluate_language(
    name: str,
    opened: Any,
    given: Given,
    wanted: tuple[str, ...],
    *,
    sources: bool,
    batch_size: int,
    max_length: int | None,
    stride: int | None,
    trust_remote_code: bool,
) -> Evaluation:
    """Returns what a language model makes of texts, and of tasks of lm-evaluation-harness."""
    tables = {} if given.data is None else given.tables()
    told: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length, "stride": stride}
    found: Evaluation | None = None
    if isinstance(opened, Merged):
        trusted: dict[str, Any] = {"sources": sources, "trust_remote_code": trust_remote_code}
        found = language_scores_of(opened, tables, **told, **trusted)
    elif tables:
        model, tokenizer = opened.model(language=True), opened.tokenizer()
        outcomes = {task: language_outcome(model, tokenizer, rows, **told) for task, rows in tables.items()}
        scored = {task: TaskScores(o.scores(), PRIMARY, len(o.nll), outcome=o) for task, o in outcomes.items()}
        found = Evaluation(name, scored)
    known = {} if found is None else dict(found.tasks)
    settings: dict[str, Any] = {"batch_size": batch_size, "limit": given.examples, "seed": given.seed}
    for task, metrics in (harness_scores(opened.folder, wanted, **settings) if wanted else {}).items():
        examples = int(metrics.pop("examples"))
        known[task] = TaskScores(metrics, primary_in(metrics), examples)
    return Evaluation(name, known, opened.artifact)
