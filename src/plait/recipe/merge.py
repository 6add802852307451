"""The recipe of a merge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from plait.recipe.fields import (
    Data,
    LabelNames,
    Name,
    NamedOptions,
    PlainName,
    Registered,
    Short,
    Strict,
    Text,
    named,
)


class LayerWeight(Strict):
    """λ of a source for some parameters.

    Attributes:
        values: One number, or several that are interpolated from the first layer to the last; what lies outside the
            layers has the first.
        filter: Part of the names of the parameters that it is for; all where not given.
    """

    values: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(min_length=1)
    filter: Text | None = None

    def at(self, depth: float) -> float:
        """Returns the value at a depth, 0 for the first layer and 1 for the last."""
        place = depth * (len(self.values) - 1)
        low = min(int(place), len(self.values) - 1)
        high = min(low + 1, len(self.values) - 1)
        return self.values[low] + (place - low) * (self.values[high] - self.values[low])


def by_layer(value: Any) -> Any:
    """Returns weights by layer from `[0, 0.5, 1]`, or a text such as `self_attn:0,0.5,1;0.5`."""
    if isinstance(value, str):
        return [_spelt(entry) for entry in value.split(";")]
    if isinstance(value, list | tuple) and value and all(isinstance(v, int | float) for v in value):
        return [{"values": value}]
    return value


def _spelt(text: str) -> dict[str, Any]:
    name, _, values = text.rpartition(":")
    return {"values": values.split(","), **({"filter": name} if name else {})}


class Spelt:
    """Says in the JSON schema that a text, or numbers alone, stand for weights by layer."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """Returns the schema of the short forms or the long one."""
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "number"}}, handler(schema)]}


class SourceSpec(Strict):
    """One fine-tuned checkpoint, with the data that tells which of its weights count.

    Attributes:
        model: Checkpoint: a folder or a Hub id.
        data: Texts of this source, with labels where the method needs them.
        statistics: File from `plait estimate`, in place of data.
        task: Task of this source; sources that name the same task share one head. Default: the source's name.
        weight: λ, the weight of this source; 1 where not given.
        layer_weights: λ by layer, or by a part of the parameter's name; the first that fits counts, else `weight`.
        labels: Names of the head's labels, in its order, for heads of LABEL_0, LABEL_1.
        revision: Branch, tag or commit of a Hub id.
        base: Model that an adapter changes, where the one it records is not here. Default: the recipe's base.
    """

    model: Text
    data: Data | None = None
    statistics: Text | None = None
    task: PlainName | None = None
    labels: LabelNames | None = None
    weight: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    layer_weights: Annotated[tuple[LayerWeight, ...], BeforeValidator(by_layer), Spelt()] | None = None
    revision: str | None = None
    base: Text | None = None


    def weight_at(self, parameter: str, depth: float) -> float:
        """Returns λ for one parameter."""
        for entry in self.layer_weights or ():
            if entry.filter is None or entry.filter in parameter:
                return entry.at(depth)
        return 1.0 if self.weight is None else self.weight


Source = Annotated[
    SourceSpec, BeforeValidator(lambda v: {"model": v} if isinstance(v, str | Path) else v), Short()
]

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


class MethodSpec(NamedOptions):
    """A merging rule with its own options, and how the statistics that it uses are gathered.

    Attributes:
        name: Merging method; `plait methods` lists them.
        importance: Statistic that weighs parameters; see `plait methods`.
        mapping: Mapping from mask nodes to tensors.
        labels: Labels that statistics are estimated with: those of the data, or drawn from or averaged over the
            model's own distribution.
        normalize: Scale of the importances: over the whole model (mean, l2), tensor by tensor, or as they are.
        per: Unit whose gradients are squared; `batch` only reproduces published numbers.
        examples: Examples of each source for statistics, a random subset.
        batch_size: Batch size for statistics; does not change the result.
        max_length: Token limit per text, of statistics and of refinement. Default: the model's.
        seed: Random seed.
        forward: Statistics in forward order, through the layers merged so far (methods that use Gram matrices).
    """

    PANELS: ClassVar[Mapping[str, tuple[str, ...]]] = {"Statistics": ESTIMATION}

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


Method = Annotated[MethodSpec, BeforeValidator(named), Registered("plait.rules")]


class MergeRecipe(Strict):
    """A merge: sources become one encoder with a head per task.

    Attributes:
        combine: Kind of job.
        sources: Checkpoints by name: a folder or a Hub id, or a mapping with data.
        base: Model that the sources were fine-tuned from. Default: the one that they record.
        method: Merging method; see `plait methods`. Default: chosen by what is given (docs/merging.md).
        merge_pooler: Merge poolers too, instead of keeping each with its head.
        align_heads: Fitting of heads to the merged encoder, on texts. Default: ridge where the method is left open and
            every source has data, else none.
        align_ridge: Strength with which ridge keeps heads as they are.
        refine: Passes in which the merged encoder learns the sources' answers, without labels. Default: 3 where the
            method is left open and every source has data, else 0.
        refine_texts: Texts of each source for refinement and heads, a random subset.
        refine_on: Target of refinement: the sources' logits, or the hidden states that their heads read.
        refine_heads: Train heads too.
        refine_dropout: Refine with the encoder's dropout on.
        refine_rate: Peak learning rate of refinement.
        refine_batch_size: Batch size of refinement.
        refine_precision: Precision of refinement; bfloat16 is mixed precision.
        keep_adapter: Merge adapters into one adapter instead of into their base: the best approximation of the weighted
            sum (svd), the sum itself with the sum of the ranks (cat), or a rule in a basis that all share (knots).
        rank: Rank of that adapter. Default: the greatest of the sources; with cat and knots the sum of theirs.
        output: Folder to write.
        dtype: Data type of the result. Default: that of the sources.
        max_shard_size: Size limit of a weight file, such as 5GB.
        trust_remote_code: Let checkpoints run code of their own.
        evaluate: Labelled data by task, to score the result and its sources on.
        search: Trials in which the method's numbers and the weights of sources are searched on validation data.
        search_rows: Validation rows of each task, a random subset.
        search_batch: Trials for each pass over the weights, where the method works entry by entry.
        storage: Database of the search, which several processes may share: sqlite:///search.db or postgresql://….
            Default: a file beside the output.
        validation: Labelled data by task, to search on. Default: the labelled data of the sources, else half of what
            is evaluated on.
    """

    PANELS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Sources and data": ("sources", "base", "evaluate", "validation", "trust_remote_code"),
        "Method": ("method", "merge_pooler"),
        "Statistics": ESTIMATION,
        "Heads and refinement": (
            "align_heads", "align_ridge", "refine", "refine_texts", "refine_on", "refine_heads", "refine_dropout",
            "refine_rate", "refine_batch_size", "refine_precision",
        ),
        "Adapters": ("keep_adapter", "rank"),
        "Search": ("search", "search_rows", "search_batch", "storage"),
        "Output": ("output", "dtype", "max_shard_size"),
    }  # fmt: skip

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
    keep_adapter: Literal["svd", "cat", "knots"] | None = None
    rank: int | None = Field(default=None, ge=1)
    output: Text
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    max_shard_size: str = "5GB"
    trust_remote_code: bool = False
    evaluate: dict[str, Data] = Field(default_factory=dict)
    search: int | None = Field(default=None, ge=1)
    search_rows: int = Field(default=500, ge=2)
    search_batch: int = Field(default=4, ge=1)
    storage: Text | None = None
    validation: dict[str, Data] = Field(default_factory=dict)

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

    def weights_at(self, parameter: str, depth: float) -> list[float] | None:
        """Returns λ per source for one parameter, by its full name and its depth; None when no source has any."""
        every = list(self.sources.values())
        if not any(source.layer_weights for source in every):
            return self.weights()
        return [source.weight_at(parameter, depth) for source in every]
