"""The student on disk: an ordinary checkpoint with a record of which teacher taught what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from plait.checkpoints.checkpoint import Checkpoint, open_checkpoint
from plait.checkpoints.tokenizers import keep_tokenizer
from plait.checkpoints.writer import atomic_folder
from plait.data.reading import to_predict
from plait.errors import OutputError
from plait.evaluation.notebook import html, shortened
from plait.evaluation.predict import predict_logits
from plait.reports.cards import student_card
from plait.reports.record import report_of, write_record
from plait.training.heads import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def taught_by(folder: Path) -> dict[str, Any]:
    """Returns the record of who taught a student; nothing for other checkpoints.

    Raises:
        SourceError: the record is damaged.
    """
    record = report_of(folder)
    return record if record.get("kind") == "student" else {}


@dataclass(frozen=True, repr=False)
class Student:
    """A model taught by several: `.labels`, `.report`, `.predict(texts)`; `.model` is an ordinary transformers one."""

    artifact: ClassVar = "student"
    folder: Path

    def __repr__(self) -> str:
        told = self.report
        return f"Student({str(self.folder)!r}, labels={list(told['labels'])}, teachers={list(told['teachers'])})"

    def _repr_html_(self) -> str:
        who = self.report["who_taught_what"]["teachers"]
        rows = [
            {
                "teacher": name,
                "labels": shortened(about["labels"]),
                "taught": f"{100 * who[name].get('share', who[name].get('mean_weight', 0.0)):.1f} %",
            }
            for name, about in self.report["teachers"].items()
        ]
        facts = {"folder": self.folder, "labels": len(self.report["labels"]), "texts": self.report["data"]["texts"]}
        return html("Student", facts, rows)

    @cached_property
    def report(self) -> dict[str, Any]:
        """Returns who taught it what, how, and what that cost."""
        return report_of(self.folder)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Returns the checkpoint, opened."""
        return open_checkpoint(self.folder)

    @property
    def labels(self) -> tuple[str, ...]:
        """Returns the union of the teachers' labels."""
        return self.checkpoint.labels or ()

    @cached_property
    def model(self) -> PreTrainedModel:
        """Returns the model in memory, in eval mode."""
        return self.checkpoint.model()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns its tokenizer."""
        return self.checkpoint.tokenizer()

    def predict(self, texts: Any, *, batch_size: int = 32) -> list[dict[str, Any]]:
        """Returns per text its label and the label's probability.

        Args:
            texts: A text, a list of texts, or what `read_examples` takes. A text is never taken for a file: name one by
                a `Path`.
            batch_size: Texts at a time.

        Raises:
            DataError: no text, or a text that is the name of a file.
        """
        examples = to_predict(texts)
        rows = predict_logits(self.model, self.tokenizer, examples, batch_size=batch_size)
        found = [row.softmax(-1).max(-1) for row in rows]
        return [{"label": self.labels[int(best.indices)], "score": float(best.values)} for best in found]


def write_student(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    report: Mapping[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Writes an ordinary checkpoint with its record and model card; it appears whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with atomic_folder(out, overwrite=overwrite) as folder, quiet():
            model.save_pretrained(folder)
            keep_tokenizer(tokenizer, folder)
            write_record(folder, "student", report)
            (folder / "README.md").write_text(student_card(report), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error}") from error
