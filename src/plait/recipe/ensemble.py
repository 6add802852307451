"""The recipe of an ensemble: M members over one encoder, made from one base or from models that exist."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, model_validator

from plait.recipe.fields import Data, DataSpec, NamedOptions, Registered, Short, Strict, Text, named


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str | Path | Mapping | DataSpec) else value


def _all_or_number(value: Any) -> Any:
    if isinstance(value, str) and value != "all" and not value.lstrip("-").isdigit():
        raise ValueError("expected all, or how many from the bottom")
    return int(value) if isinstance(value, str) and value != "all" else value


Layers = Annotated[int | Literal["all"], BeforeValidator(_all_or_number)]
Method = Annotated[NamedOptions, BeforeValidator(named), Registered("plait.ensemble_methods")]
Perturbation = Annotated[NamedOptions, BeforeValidator(named), Registered("plait.perturbations")]
Consistency = Annotated[NamedOptions, BeforeValidator(named), Registered("plait.consistencies")]
Models = Annotated[tuple[Text, ...], BeforeValidator(_one_or_more), Short()]
Files = Annotated[tuple[Data, ...], BeforeValidator(_one_or_more), Short()]
CAMERO = NamedOptions(name="camero")
TEACHING = "distilled"
"""The method where texts to teach on are given and no method is named."""


class EnsembleRecipe(Strict):
    """An ensemble: what its members start from, what they share, what tells them apart and what holds them together.

    Attributes:
        combine: Kind of job.
        base: Encoder that all members start from; beside `from` the model that learns from them.
        sources: Fine-tuned models that become the members, or that teach the base (also called `from`).
        revision: Branch, tag or commit of a Hub id.
        data: Labelled data to train on.
        validation: Labelled data that chooses the epoch.
        text: Texts without labels to teach on, of methods in which members teach a model; one file or several.
        members: M, the number of members. Default: 4.
        shared_layers: Layers from the bottom that all members share: all, or a number.
        head: Head of each member: linear, or a projection with tanh before it.
        classifier_dropout: Dropout before the head. Default: the encoder's.
        problem_type: Meaning of the labels, as in transformers. Default: found from the data.
        method: Ensemble method; see `plait methods`.
        perturbation: Perturbation that tells members apart; see `plait methods`.
        strength: Strength or rate of the perturbation. Default: its own.
        replicate_at: First layer that members see differently. Default: 0 for dropout and what acts on embeddings, else
            the highest shared one.
        consistency: Regulariser that holds members together; see `plait methods`.
        alpha: Weight of the regulariser. Default: 1.
        replay: Keep one member's activations in memory at a time, for a third more time.
        accumulate: Parts that a training step is computed in.
        limit: Size of a random subset of the data.
        held_back: Share of the data that chooses the epoch without validation data.
        metric: Score that chooses the epoch, such as matthews or nll. Default: the task's.
        epochs: Training epochs.
        learning_rate: Peak learning rate.
        batch_size: Batch size: examples per optimizer step.
        max_length: Token limit per text. Default: 128.
        warmup: Share of the steps in which the learning rate rises.
        weight_decay: Weight decay of AdamW.
        precision: Precision of the training; bfloat16 is mixed precision.
        seed: Random seed.
        report_to: Tracker that transformers reports to, such as tensorboard.
        student_epochs: Epochs of the model that members teach. Default: as many as theirs.
        keep_members: Keep the members that taught, in OUTPUT.members.
        store: Folder of the members' answers, used or made. Default: OUTPUT.posteriors.
        output: Folder to write.
        trust_remote_code: Let checkpoints run code of their own.
    """

    PANELS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Sources and data": (
            "base", "sources", "revision", "data", "validation", "text", "problem_type", "limit", "trust_remote_code",
        ),
        "Method": (
            "method", "members", "shared_layers", "head", "classifier_dropout", "perturbation", "strength",
            "replicate_at", "consistency", "alpha",
        ),
        "Training": (
            "held_back", "metric", "epochs", "learning_rate", "batch_size", "max_length", "warmup", "weight_decay",
            "precision", "seed", "replay", "accumulate", "student_epochs", "report_to",
        ),
        "Output": ("output", "store", "keep_members"),
    }  # fmt: skip

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": [key]} for key in ("base", "sources", "from")]})

    combine: Literal["ensemble"] = "ensemble"
    base: Text | None = None
    sources: Models | None = Field(
        default=None, min_length=1, validation_alias=AliasChoices("sources", "from")
    )
    revision: str | None = None
    data: Data | None = None
    validation: Data | None = None
    text: Files | None = Field(
        default=None, min_length=1, validation_alias=AliasChoices("text", "texts")
    )
    members: int | None = None
    shared_layers: Layers = "all"
    head: Literal["linear", "tanh"] = "linear"
    classifier_dropout: float | None = None
    problem_type: (
        Literal["single_label_classification", "multi_label_classification", "regression"] | None
    ) = None
    method: Method = CAMERO
    perturbation: Perturbation | None = None
    strength: float | None = None
    replicate_at: int | None = None
    consistency: Consistency | None = None
    alpha: float | None = None
    replay: bool = False
    accumulate: int = Field(default=1, ge=1)
    limit: int | None = Field(default=None, ge=1)
    held_back: float = Field(default=0.1, ge=0, lt=1)
    metric: str | None = None
    epochs: float = Field(default=3.0, ge=0, allow_inf_nan=False)
    learning_rate: float = Field(default=5e-5, gt=0, allow_inf_nan=False)
    batch_size: int = Field(default=16, ge=1)
    max_length: int | None = Field(default=None, ge=4)
    warmup: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(default=0, ge=0)
    report_to: str = "none"
    student_epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    keep_members: bool = False
    store: Text | None = None
    output: Text
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _a_start(self) -> EnsembleRecipe:
        if self.base is None and self.sources is None:
            raise ValueError("neither of base and from is given; expected one of them")
        return self

    @property
    def cut_at(self) -> int | None:
        """Returns the tokens a text is cut at; None, at most 512 as anywhere, where nothing is trained."""
        return 128 if self.max_length is None and self.epochs else self.max_length

    @property
    def starts(self) -> tuple[str, ...]:
        """Returns the models that are read."""
        return (*(() if self.base is None else (self.base,)), *(self.sources or ()))

    @property
    def beside(self) -> Path:
        """Returns where the trained members are kept that taught a model."""
        target = Path(self.output)
        return target.with_name(f"{target.name}.members")

    def store_folder(self) -> Path:
        """Returns where the members' answers lie: beside the output unless a folder is given."""
        target = Path(self.output)
        return Path(self.store) if self.store is not None else target.with_name(f"{target.name}.posteriors")
