"""The recipe of a merge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from plait.recipe.fields import Data, LabelNames, Name, PlainName, Strict, Text, number


class SourceSpec(Strict):
    """One fine-tuned checkpoint, with the data that tells which of its weights count."""

    model: Text
    data: Data | None = None
    statistics: Text | None = None
    task: PlainName | None = None
    labels: LabelNames | None = None
    weight: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    revision: str | None = None


Source = Annotated[SourceSpec, BeforeValidator(lambda v: {"model": v} if isinstance(v, str | Path) else v)]

ESTIMATION = (
    "importance",
    "mapping",
    "labels",
    "normalize",
    "per",
    "examples",
    "batch_size",
    "max_length",
    "seed",
    "forward",
)
"""Keys of `method` that say how statistics are gathered; the others are options of the rule."""


AUTO = "auto"
"""The method that Plait chooses by what it is given."""


class MethodSpec(BaseModel):
    """A merging rule, the importance it uses, and the rule's own options (any key the rule declares)."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Name = AUTO
    importance: Name = "diagonal"
    mapping: Literal["paper", "structural"] = "paper"
    labels: Literal["given", "sampled", "exact"] = "given"
    normalize: Name = "tensor"
    per: Literal["example", "batch"] = "example"
    examples: int = Field(default=256, ge=1)
    batch_size: int = Field(default=16, ge=1)
    max_length: int | None = Field(default=None, ge=4)
    seed: int = Field(default=0, ge=0)
    forward: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Returns the rule's own options."""
        return {name: number(value) for name, value in (self.model_extra or {}).items()}


Method = Annotated[MethodSpec, BeforeValidator(lambda v: {"name": v} if isinstance(v, str) else v)]


class MergeRecipe(Strict):
    """A merge: sources become one encoder with a head per task."""

    combine: Literal["merge"] = "merge"
    sources: dict[PlainName, Source] = Field(min_length=1)
    base: Text | None = None
    method: Method | None = None
    merge_pooler: bool = False
    align_heads: Literal["none", "shift", "ridge"] | None = None
    align_ridge: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    refine: int | None = Field(default=None, ge=0)
    refine_texts: int = Field(default=256, ge=2)
    refine_on: Literal["logits", "hidden"] = "logits"
    refine_heads: bool = False
    refine_dropout: bool = False
    refine_rate: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    refine_batch_size: int = Field(default=16, ge=1)
    refine_precision: Literal["float32", "bfloat16"] = "float32"
    output: Text
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    max_shard_size: str = "5GB"
    trust_remote_code: bool = False
    evaluate: dict[str, Data] = Field(default_factory=dict)

    @property
    def open(self) -> bool:
        """Returns whether the method is left to Plait."""
        return self.method is None or self.method.name == AUTO

    def resolved_method(self, data: Mapping[str, Any] | None = None, *, base: bool = False) -> MethodSpec:
        """Returns the method, choosing Plait's default where the recipe leaves it open: see docs/merging.md.

        Args:
            data: what is in memory, by source.
            base: whether the sources' base is at hand.
        """
        if self.method is not None and not self.open:
            return self.method
        known = set(data or {})
        informed = all(s.data or s.statistics or name in known for name, s in self.sources.items())
        chosen = "actmerge" if base else "regmean" if informed else "average"
        return (self.method or MethodSpec()).model_copy(update={"name": chosen})

    def tasks(self) -> dict[str, str]:
        """Returns source name -> task name; a source without a `task` is its own task."""
        return {name: source.task or name for name, source in self.sources.items()}

    def weights(self) -> list[float] | None:
        """Returns λ per source in order (1 where not given), or None when no source has one."""
        given = [source.weight for source in self.sources.values()]
        return None if all(w is None for w in given) else [1.0 if w is None else w for w in given]
