"""An ensemble on disk: an ensemble model with its record, separate models, or one ordinary model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.boundary import reading
from plait.checkpoints.checkpoint import Checkpoint, open_checkpoint, quiet_loading, read_config, whole
from plait.checkpoints.headers import read_headers
from plait.checkpoints.parameter_names import check_size
from plait.checkpoints.tokenizers import keep_tokenizer, open_tokenizer
from plait.checkpoints.writer import atomic_folder
from plait.ensembles.configuration import EnsembleConfig
from plait.ensembles.folding import one_member
from plait.ensembles.modeling import Ensemble
from plait.errors import SourceError
from plait.evaluation.notebook import html, shortened
from plait.reports.cards import ensemble_card
from plait.reports.record import MEMBERS, kind_of, report_of, write_record
from plait.training.heads import quiet
from plait.training.state import full_disk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, repr=False)
class SavedEnsemble:
    """A trained ensemble: `.model` is a transformers model; `.labels`, `.report`, `.predict(texts)`."""

    folder: Path

    def __repr__(self) -> str:
        return f"SavedEnsemble({str(self.folder)!r}, method={self.method!r}, members={self.members})"

    def _repr_html_(self) -> str:
        found = self.report.get("validation") or {}
        answers = {"together": found["metrics"], **found["sources"]} if found else {}
        rows = [
            {"": who, found["primary"]: f"{scores[found['primary']]:.3f}"} for who, scores in answers.items()
        ]
        sizes, costs = self.report.get("parameters", {}), self.report.get("forward_equivalents", {})
        facts = {
            "folder": self.folder,
            "method": self.method,
            "members": self.members,
            "labels": shortened(self.labels or ()),
            "parameters": f"{sizes['saved']:,}" if "saved" in sizes else None,
            "passes per prediction": costs.get("prediction"),
        }
        return html("One model of several" if self.plain else "Ensemble", facts, rows)

    @cached_property
    def artifact(self) -> str:
        """Returns `ensemble`, or `one_model` where it became one ordinary checkpoint."""
        return "ensemble" if kind_of(self.folder) == "ensemble" else "one_model"

    @property
    def plain(self) -> bool:
        """Says whether it is one ordinary checkpoint, which transformers opens without Plait."""
        return self.artifact == "one_model"

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Returns the ordinary checkpoint, opened."""
        return open_checkpoint(self.folder)

    @cached_property
    def report(self) -> dict[str, Any]:
        """Returns how it was made, what it cost, and its scores; nothing where the record is gone.

        Raises:
            SourceError: the record is damaged.
        """
        return report_of(self.folder)

    @property
    def method(self) -> str:
        """Returns the method that made it."""
        return str(self.report.get("recipe", {}).get("method", {}).get("name", "camero"))

    @property
    def folders(self) -> tuple[Path, ...]:
        """Returns where its models lie: one, or one per member where they are separate."""
        several = self.folder / MEMBERS
        if not several.is_dir():
            return (self.folder,)
        found = {
            int(place.name): place for place in several.iterdir() if place.name.isdecimal() and place.is_dir()
        }
        missing = sorted(set(range(self.report.get("members", 1))) - set(found))
        if missing:
            raise SourceError(
                f"{several}: lacks {', '.join(map(str, missing))}; expected every member that was trained"
            )
        return tuple(found[number] for number in sorted(found))

    @cached_property
    def config(self) -> EnsembleConfig:
        """Returns the configuration, of the first where models are separate."""
        return ensemble_config(self.folders[0])

    @property
    def encoder(self) -> Any:
        """Returns the configuration of its encoder."""
        return self.checkpoint.config if self.plain else self.config.encoder

    @property
    def outputs(self) -> int:
        """Returns how many logits a member gives."""
        return int((self.checkpoint.config if self.plain else self.config).num_labels or 1)

    @property
    def kind(self) -> str:
        """Returns what its heads classify: sequences or tokens."""
        if self.plain:
            return self.checkpoint.kind
        names = self.config.architectures or ["Sequence"]
        return "token_classification" if "Token" in names[0] else "sequence_classification"

    @property
    def problem(self) -> Any:
        """Returns what its logits mean."""
        if self.plain:
            return self.checkpoint.problem_type or "single_label_classification"
        known = self.config.problem_type
        single = "regression" if self.config.num_labels == 1 else "single_label_classification"
        return known or (single if self.kind == "sequence_classification" else "single_label_classification")

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Returns the names of its labels; None for a regression."""
        if self.plain:
            return self.checkpoint.labels
        names: dict[Any, str] = dict(self.config.id2label or {})
        return None if self.problem == "regression" else tuple(names[i] for i in sorted(names))

    @property
    def passes(self) -> int | None:
        """Returns how many passes with dropout its answers are; None where its members are its own."""
        recipe = self.report.get("recipe", {})
        return int(recipe["members"]) if self.method == "mc_dropout" else None

    @property
    def members(self) -> int:
        """Returns M; one where it is one ordinary checkpoint."""
        return 1 if self.plain else self.passes or self.config.members * len(self.folders)

    def models(self) -> Iterator[Any]:
        """Yields its models, one in memory at a time."""
        if self.plain:
            yield self.model
            return
        for place in self.folders:
            yield open_ensemble(place, self.kind)

    @cached_property
    def model(self) -> Any:
        """Returns the model in memory, in eval mode.

        Raises:
            SourceError: it is separate models, or damaged.
        """
        if len(self.folders) > 1:
            raise SourceError(
                f"{self.folder} holds {len(self.folders)} separate models: load one of them, such as {self.folders[0]}"
            )
        return self.checkpoint.model() if self.plain else open_ensemble(self.folders[0], self.kind)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns its tokenizer, whose limit is the length that was trained.

        Raises:
            SourceError: it has none, or a damaged one.
        """
        return limited(open_tokenizer(self.folders[0], str(self.folders[0])), self.report)

    def predict(self, texts: Any, *, batch_size: int = 32) -> list[Any]:
        """Returns per text what the members say together, and the share of them that say so alone."""
        from plait.ensembles.answers import answers

        return answers(self, texts, batch_size=batch_size)


def ensemble_config(folder: Path) -> EnsembleConfig:
    """Returns the configuration of one model.

    Raises:
        SourceError: it is damaged, of something else, or asks to run code.
    """
    found = read_config(folder)
    if not isinstance(found, EnsembleConfig):
        raise SourceError(f"{folder}: config.json is of a {found.model_type}, expected an ensemble")
    return found


def open_ensemble(folder: Path, kind: str) -> Ensemble:
    """Returns one model in memory, in eval mode.

    Raises:
        SourceError: it is damaged, or lacks weights.
    """
    from plait.ensembles.modeling import ENSEMBLES

    cls, config = ENSEMBLES[kind], ensemble_config(folder)
    told: dict[str, Any] = {"local_files_only": True, "output_loading_info": True}
    check_size(cls, config, read_headers(folder), str(folder))
    with quiet_loading(), reading(folder, "the ensemble cannot be opened"):
        found = cls.from_pretrained(folder, config=config, trust_remote_code=False, **told)
    model: Ensemble = whole(found, folder)
    model.eval()
    return model


def limited(tokenizer: PreTrainedTokenizerBase, report: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Returns the tokenizer, which from now on says itself how long the texts were in training."""
    if trained := report.get("recipe", {}).get("max_length"):
        tokenizer.model_max_length = min(tokenizer.model_max_length, trained)
    return tokenizer


def write_ensemble(
    models: Sequence[Ensemble],
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    report: Mapping[str, Any],
    *,
    overwrite: bool,
    plain: bool = False,
) -> None:
    """Writes one model, or separate ones under `members`, with record and card; all of it appears at once.

    Args:
        models: one, or separate ones.
        tokenizer: theirs.
        out: where to.
        report: the record.
        overwrite: whether what is there is replaced.
        plain: whether the one model is written as an ordinary checkpoint of the encoder's own class.

    Raises:
        OutputError: it cannot be written.
    """
    with full_disk(out), atomic_folder(out, overwrite=overwrite) as folder, quiet():
        for number, model in enumerate(models):
            place = folder if len(models) == 1 else folder / MEMBERS / str(number)
            (one_member(model, 0) if plain else model).save_pretrained(place)
            keep_tokenizer(limited(tokenizer, report), place)
        write_record(folder, "ensemble", report)
        (folder / "README.md").write_text(ensemble_card(report), encoding="utf-8")


def keep(members: Path, out: Path, report: Mapping[str, Any], *, overwrite: bool) -> None:
    """Copies members that became one model to where they are kept, with the record of it; all of it appears at once.

    Raises:
        OutputError: they cannot be written.
    """
    with full_disk(out), atomic_folder(out, overwrite=overwrite) as folder:
        shutil.copytree(members, folder, dirs_exist_ok=True)
        write_record(folder, "members", report)
