"""The recipe of an amalgamation: teachers with labels of their own teach one student, from texts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from plait.recipe.fields import Data, LabelNames, Name, PlainName, Strict, Text, number


class TeacherSpec(Strict):
    """One classifier with labels of its own."""

    model: Text
    labels: LabelNames | None = None
    revision: str | None = None


Teacher = Annotated[TeacherSpec, BeforeValidator(lambda v: {"model": v} if isinstance(v, str | Path) else v)]


class ObjectiveSpec(BaseModel):
    """What the student minimises, and the objective's own options (any key it declares)."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Name = "muka"

    @property
    def options(self) -> dict[str, Any]:
        """Returns the objective's own options."""
        return {name: number(value) for name, value in (self.model_extra or {}).items()}


Objective = Annotated[ObjectiveSpec, BeforeValidator(lambda v: {"name": v} if isinstance(v, str) else v)]


class GateSpec(BaseModel):
    """Who decides which teacher is competent, and the gate's own options (any key it declares)."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Name

    @property
    def options(self) -> dict[str, Any]:
        """Returns the gate's own options."""
        return {name: number(value) for name, value in (self.model_extra or {}).items()}


Gate = Annotated[GateSpec, BeforeValidator(lambda v: {"name": v} if isinstance(v, str) else v)]


class AmalgamateRecipe(Strict):
    """An amalgamation: who teaches, on which texts, who decides whom to believe, and how the student is trained."""

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
    objective: Objective = ObjectiveSpec()
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
    output: Text
    trust_remote_code: bool = False

    def store_folder(self) -> Path:
        """Returns where the posteriors lie: beside the output unless a folder is given."""
        target = Path(self.output)
        return Path(self.store) if self.store is not None else target.with_name(f"{target.name}.posteriors")
