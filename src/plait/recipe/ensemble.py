"""The recipe of an ensemble: M members over one encoder, made from one base or from models that exist."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from plait.recipe.fields import Data, DataSpec, Name, Strict, Text, number


class ChoiceSpec(BaseModel):
    """Something chosen by name, and its own options (any key it declares)."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Name

    @property
    def options(self) -> dict[str, Any]:
        """Returns the options of what was chosen."""
        return {name: number(value) for name, value in (self.model_extra or {}).items()}


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str | Path | Mapping | DataSpec) else value


def _all_or_number(value: Any) -> Any:
    if isinstance(value, str) and value != "all" and not value.lstrip("-").isdigit():
        raise ValueError("expected all, or how many from the bottom")
    return int(value) if isinstance(value, str) and value != "all" else value


Layers = Annotated[int | Literal["all"], BeforeValidator(_all_or_number)]
Choice = Annotated[ChoiceSpec, BeforeValidator(_named)]
Models = Annotated[tuple[Text, ...], BeforeValidator(_one_or_more)]
Files = Annotated[tuple[Data, ...], BeforeValidator(_one_or_more)]
CAMERO = ChoiceSpec(name="camero")


class EnsembleRecipe(Strict):
    """An ensemble: what its members start from, what they share, what tells them apart and what holds them together."""

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
    method: Choice = CAMERO
    perturbation: Choice | None = None
    strength: float | None = None
    replicate_at: int | None = None
    consistency: Choice | None = None
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
