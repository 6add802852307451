"""The front matter of model cards, by huggingface_hub's own classes; what they say of licences and places."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

PIPELINES = {
    "sequence_classification": "text-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "image_classification": "image-classification",
}
METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "f1": "f1",
    "exact_match": "exact_match",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "mse": "mse",
}
"""Our metrics that hubs know, by the names they have there."""
ABSOLUTE = re.compile(r"(/|~|[A-Za-z]:[\\/]).*")
Origins = Mapping[str, Mapping[str, Any]]
"""By name the models that a result was made from; `hub` and `license` where they are known."""


@dataclass(frozen=True)
class Scored:
    """Metrics of one task on one data set."""

    task: str
    data: str
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Front:
    """What hubs read of a result.

    Attributes:
        name: of the model.
        library: that opens it.
        tags: to be found by.
        relation: to the models that it was made from: `merge` or `finetune`.
        origins: these models.
        pipeline: what it does; None for a model of several tasks.
        scores: measured ones.
    """

    name: str
    library: str
    tags: Sequence[str]
    relation: str
    origins: Origins
    pipeline: str | None = None
    scores: Sequence[Scored] = field(default_factory=tuple)

    def text(self) -> str:
        """Returns the front matter with its fences."""
        from huggingface_hub import ModelCardData

        bases = list(dict.fromkeys(str(o["hub"]) for o in self.origins.values() if o.get("hub")))
        results = self._results()
        told: dict[str, Any] = {"base_model_relation": self.relation} if bases else {}
        data = ModelCardData(
            base_model=(bases if len(bases) > 1 else bases[0]) if bases else None,
            library_name=self.library,
            license=common_licence(self.origins),
            pipeline_tag=self.pipeline,
            tags=["plait", *self.tags],
            model_name=self.name if results else None,
            eval_results=results or None,
            **told,
        )
        return f"---\n{data.to_yaml()}\n---"

    def _results(self) -> list[Any]:
        from huggingface_hub import EvalResult

        return [
            EvalResult(
                task_type=scored.task,
                dataset_type=re.sub(r"[^\w.-]+", "-", scored.data).strip("-") or "data",
                dataset_name=scored.data,
                metric_type=METRICS[name],
                metric_name=name,
                metric_value=round(float(value), 4),
            )
            for scored in self.scores
            for name, value in scored.metrics.items()
            if name in METRICS
        ]


def common_licence(origins: Origins) -> str | None:
    """Returns the licence that all models have; None where one is unknown or differs."""
    found = {origin.get("license") for origin in origins.values()}
    return str(found.pop()) if len(found) == 1 and None not in found else None


def licence_told(origins: Origins) -> str:
    """Returns under which licence a result stands, or why that is not said."""
    known = {name: str(o["license"]) for name, o in origins.items() if o.get("license")}
    if common := common_licence(origins):
        return f"`{common}`, as all models that it was made from."
    if len(known) < len(origins):
        unknown = ", ".join(name for name in origins if name not in known)
        return f"None is set, because that of {unknown} is not known: look it up before you share this model."
    each = ", ".join(f"{name}: `{licence}`" for name, licence in known.items())
    return f"None is set, because the models that it was made from have different ones ({each})."


def portable(content: Any) -> Any:
    """Returns plain data in which an absolute path is the name it ends in: places are nobody else's business."""
    if isinstance(content, Mapping):
        return {key: portable(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(map(portable, content))
    if isinstance(content, str) and ABSOLUTE.fullmatch(content) and "\n" not in content:
        return PurePath(content.replace("\\", "/")).name or content
    return content


def folder_name(place: Any) -> str:
    """Returns the last part of a place, which names the model."""
    return PurePath(str(place)).name or "model"
