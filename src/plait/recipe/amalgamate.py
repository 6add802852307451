"""The recipe of an amalgamation: teachers with labels of their own teach one student, from texts alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, Field

from plait.recipe.fields import (
    Data,
    LabelNames,
    NamedOptions,
    PlainName,
    Registered,
    Short,
    Strict,
    Text,
    named,
)


class TeacherSpec(Strict):
    """One classifier with labels of its own.

    Attributes:
        model: Checkpoint: a folder or a Hub id.
        labels: Names of the head's labels, in its order, for heads of LABEL_0, LABEL_1.
        revision: Branch, tag or commit of a Hub id.
    """

    model: Text
    labels: LabelNames | None = None
    revision: str | None = None


Teacher = Annotated[
    TeacherSpec, BeforeValidator(lambda v: {"model": v} if isinstance(v, str | Path) else v), Short()
]


MUKA = NamedOptions(name="muka")
Objective = Annotated[
    NamedOptions,
    BeforeValidator(lambda v: {"name": MUKA.name, **v} if isinstance(v, Mapping) else named(v)),
    Registered("plait.objectives"),
]
Gate = Annotated[NamedOptions, BeforeValidator(named), Registered("plait.gates")]


class AmalgamateRecipe(Strict):
    """An amalgamation: who teaches, on which texts, who decides whom to believe, and how the student is trained.

    Attributes:
        combine: Kind of job.
        sources: Classifiers by name, each with labels of its own (also called `teachers`).
        text: Unlabelled texts to teach on.
        student: Model that the student starts from: a model, a teacher's name, or merged. Default: the teachers' base.
        base: Encoder before fine-tuning. Default: the one that the teachers record, or the student.
        gate: Gate that chooses the teacher of each text; see `plait methods`. Default: auto, which weighs several.
        temperature: Temperature of soft targets. Default: the gate's own.
        target: Target of a text: the chosen teacher's posterior, all posteriors weighted, or what teachers agree on.
            Default: hard, or consensus where teachers share labels.
        margin: Weigh texts by how clear the choice was. Default: yes.
        agreement: Weigh texts by how many gates agree (gates that weigh several).
        rounds: Students that correct the routing, one after another. Default: 0.
        posterior: Posteriors of one pass, or their mean over Monte Carlo passes.
        calibrate: Calibration of the teachers to one scale, without labels.
        objective: Loss of the student; see `plait methods`.
        rename: New names of labels, TEACHER.LABEL to NAME; equal names are one label.
        passes: Monte Carlo passes. Default: 16 where they are needed.
        last_layers: Dropout in so many last layers only, which is much cheaper. Default: all layers.
        stop: Early stopping of passes that cannot change the routing (certain) or hardly will (likely).
        dropout: Dropout rate for teachers that have no dropout.
        routing: File (csv, jsonl, parquet) for the teacher, margin and weights of each text.
        limit: Size of a random subset of the texts.
        held_back: Share of the texts that chooses the epoch.
        validation: Labelled data that chooses the epoch in place of held-back texts.
        epochs: Training epochs.
        learning_rate: Peak learning rate.
        batch_size: Batch size: examples per optimizer step.
        max_length: Token limit per text. Default: that of a store that exists, or 128.
        warmup: Share of the steps in which the learning rate rises.
        weight_decay: Weight decay of AdamW.
        precision: Precision of the training; bfloat16 is mixed precision.
        seed: Random seed.
        report_to: Tracker that transformers reports to, such as tensorboard.
        store: Folder of the posteriors, used or made. Default: OUTPUT.posteriors.
        output: Folder to write.
        trust_remote_code: Let checkpoints run code of their own.
    """

    PANELS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Sources and data": ("sources", "text", "student", "base", "rename", "limit", "routing", "trust_remote_code"),
        "Gate and targets": (
            "gate", "objective", "temperature", "target", "margin", "agreement", "rounds", "posterior", "calibrate",
        ),
        "Monte Carlo passes": ("passes", "last_layers", "stop", "dropout", "store"),
        "Training": (
            "held_back", "validation", "epochs", "learning_rate", "batch_size", "max_length", "warmup",
            "weight_decay", "precision", "seed", "report_to",
        ),
        "Output": ("output",),
    }  # fmt: skip

    combine: Literal["amalgamate"] = "amalgamate"
    sources: dict[PlainName, Teacher] = Field(
        min_length=1, validation_alias=AliasChoices("sources", "teachers")
    )
    text: Data | None = Field(default=None, validation_alias=AliasChoices("text", "texts"))
    student: Text | None = None
    base: Text | None = None
    gate: Gate | None = None
    temperature: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    target: Literal["hard", "soft", "consensus"] | None = None
    margin: bool | None = None
    agreement: bool = False
    rounds: int | None = Field(default=None, ge=0, le=3)
    posterior: Literal["single", "mean"] = "single"
    calibrate: Literal["none", "temperature", "standardize", "auto"] = "none"
    objective: Objective = MUKA
    rename: dict[str, str] = Field(default_factory=dict)
    passes: int | None = Field(default=None, ge=0)
    last_layers: int | None = Field(default=None, ge=1)
    stop: Literal["never", "certain", "likely"] = "never"
    dropout: float | None = Field(default=None, gt=0, lt=1)
    limit: int | None = Field(default=None, ge=2)
    held_back: float = Field(default=0.05, ge=0, lt=1)
    validation: Data | None = None
    epochs: float = Field(default=3.0, gt=0, allow_inf_nan=False)
    learning_rate: float = Field(default=5e-5, gt=0, allow_inf_nan=False)
    batch_size: int = Field(default=16, ge=1)
    max_length: int = Field(default=128, ge=4)
    warmup: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(default=0, ge=0, lt=2**32)
    report_to: str = "none"
    store: Text | None = None
    routing: Text | None = None
    output: Text
    trust_remote_code: bool = False

    def store_folder(self) -> Path:
        """Returns where the posteriors lie: beside the output unless a folder is given."""
        target = Path(self.output)
        return Path(self.store) if self.store is not None else target.with_name(f"{target.name}.posteriors")
