"""What a head does: its kind, problem type and label names, and the transformers class that has it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto import modeling_auto as auto

from plait.boundary import reading
from plait.data import Kind, ProblemType
from plait.data.examples import ONE_ANSWER
from plait.data.language import LanguageKind
from plait.errors import SourceError, listed


def head_kind(model: PreTrainedModel) -> Kind | None:
    """Returns what the model's head does, from its class; None for a class of another make."""
    name = type(model).__name__
    kinds: dict[str, Kind] = {
        "SequenceClassification": "sequence_classification",
        "TokenClassification": "token_classification",
        "QuestionAnswering": "question_answering",
        "ImageClassification": "image_classification",
    }
    return next((kind for ending, kind in kinds.items() if name.endswith(ending)), None)


def head_problem(model: PreTrainedModel) -> ProblemType:
    """Returns what a sequence head was trained for; one output is a regression unless told otherwise."""
    config = model.config
    known: ProblemType | None = config.problem_type
    return known or ("regression" if config.num_labels == 1 else "single_label_classification")


def head_labels(model: PreTrainedModel) -> tuple[str, ...] | None:
    """Returns the head's label names in order; None where it has none to speak of (regression, answers)."""
    if head_kind(model) == "question_answering" or (
        head_kind(model) in ONE_ANSWER and head_problem(model) == "regression"
    ):
        return None
    names: dict[Any, str] = dict(model.config.id2label or {})
    return tuple(str(names[i]) for i in sorted(names))


HEADS = {
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
    "image_classification": AutoModelForImageClassification,
}


@dataclass(frozen=True)
class Head:
    """What the new head has to be."""

    kind: Kind
    names: tuple[str, ...] | None
    problem_type: ProblemType | None

    def settings(self) -> dict[str, Any]:
        """Returns the configuration entries of this head."""
        if self.kind == "question_answering":
            return {}
        names = self.names or ("LABEL_0",)
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        problem = {"problem_type": self.problem_type} if self.kind in ONE_ANSWER else {}
        return {"num_labels": len(names), **labels, **problem}

    def differs(self, config: PreTrainedConfig, model: PreTrainedModel) -> bool:
        """Says whether a base with this configuration has a head of this class for other labels."""
        if type(model).__name__ not in (config.architectures or ()) or self.kind == "question_answering":
            return False
        found = tuple(str(name) for name in (config.id2label or {}).values())
        return found != (self.names or found[:1])


def describe_head(cls: type[PreTrainedModel], config: PretrainedConfig) -> dict[str, Any]:
    """Returns `kind`, `labels` and `problem_type` of a model in memory, as `Checkpoint` has them."""
    kind = kind_of(cls.__name__, config, cls.__name__)
    problem = problem_of(config) if kind in ONE_ANSWER else None
    return {"kind": kind, "labels": label_names(cls.__name__, config, kind, problem), "problem_type": problem}


def problem_of(config: PretrainedConfig) -> str:
    """Returns what a sequence classifier's outputs mean: as recorded, else one output is a regression."""
    return config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")


def label_names(
    folder: str | Path, config: PretrainedConfig, kind: str, problem: str | None
) -> tuple[str, ...] | None:
    """Returns the label names in the order of the head's rows; heads that do not classify have none."""
    if kind not in {*ONE_ANSWER, "token_classification"} or problem == "regression":
        return None
    with reading(folder, "id2label in config.json is not understood", advice="expected row numbers and names"):
        table = {int(row): str(label) for row, label in (config.id2label or {}).items()}
    if sorted(table) != list(range(len(table))):
        raise SourceError(f"{folder}: id2label has the keys {sorted(table)}; expected 0 to {len(table) - 1}")
    names = tuple(table[i] for i in range(len(table)))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SourceError(f"{folder}: id2label gives several rows the names {listed(twice)}; rename them")
    return names


HEAD_MAPPINGS = {
    "sequence_classification": "SEQUENCE_CLASSIFICATION",
    "token_classification": "TOKEN_CLASSIFICATION",
    "question_answering": "QUESTION_ANSWERING",
    "image_classification": "IMAGE_CLASSIFICATION",
}
LANGUAGE_HEADS = ("PRETRAINING", "MASKED_LM", "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM")

PRETRAINING = ("ForMaskedLM", "ForPreTraining")
ModelClass = type[PreTrainedModel]


def class_names(kind: str, config: PretrainedConfig) -> set[str]:
    """Returns the classes that a kind of checkpoint with this configuration may record, code of its own included."""
    language = ["", *(f"FOR_{head}_" for head in LANGUAGE_HEADS)]
    heads = [f"FOR_{HEAD_MAPPINGS[kind]}_"] if kind in HEAD_MAPPINGS else language
    found = (getattr(auto, f"MODEL_{head}MAPPING_NAMES").get(config.model_type, ()) for head in heads)
    custom: str = (getattr(config, "auto_map", None) or {}).get(auto_class(kind), "")
    known = {name for names in found for name in ([names] if isinstance(names, str) else names)}
    return known | ({str(custom).rpartition(".")[2]} if custom else set())


def class_for(kind: str, config: PretrainedConfig) -> ModelClass | None:
    """Returns the class of a configuration and a kind of head, None where transformers has none (remote code)."""
    head = HEAD_MAPPINGS.get(kind)
    table = getattr(transformers, f"MODEL_FOR_{head}_MAPPING" if head else "MODEL_MAPPING")
    found = table.get(type(config), None)
    chosen: ModelClass | None = found[0] if isinstance(found, tuple) else found
    return chosen


def language_class(architecture: str, config: PretrainedConfig) -> ModelClass | None:
    """Returns the class of a language model that a checkpoint records, None for a bare encoder or code of its own."""
    for head in LANGUAGE_HEADS:
        found = getattr(transformers, f"MODEL_FOR_{head}_MAPPING").get(type(config), None)
        for cls in found if isinstance(found, tuple) else (found,):
            if cls is not None and cls.__name__ == architecture:
                return cls  # type: ignore[no-any-return]
    return None


def class_named(name: str, config: PretrainedConfig) -> ModelClass | None:
    """Returns the class of this name that transformers has for a configuration; names are compared, never looked up."""
    kinds = ("body", *HEAD_MAPPINGS)
    known = (cls for kind in kinds if (cls := class_for(kind, config)) is not None)
    return next((cls for cls in known if cls.__name__ == name), None) or language_class(name, config)


def language_kind(model: PreTrainedModel | type[PreTrainedModel] | None) -> LanguageKind | None:
    """Returns what a language model gives the likelihood of: texts, or targets given texts; None for all others."""
    name = (model if isinstance(model, type) else type(model)).__name__
    tables: dict[LanguageKind, Any] = {
        "seq2seq": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    return next((kind for kind, table in tables.items() if name in table.values()), None)


def kind_of(architecture: str, config: PretrainedConfig, where: str) -> str:
    """Returns the kind of head that a class name stands for, `body` for bare encoders and language models.

    A language-modelling head belongs to pretraining, not to a task: such a checkpoint counts as its body.
    """
    for kind in HEAD_MAPPINGS:
        if architecture in class_names(kind, config) or architecture.endswith(
            auto_class(kind).removeprefix("AutoModel")
        ):
            return kind
    if architecture in class_names("body", config) or architecture.endswith(PRETRAINING):
        return "body"
    raise SourceError(
        f"{where}: architecture {architecture!r} is not understood; expected a transformers class for "
        "sequence, token or image classification or question answering, a bare encoder or a masked language model"
    )


def auto_class(kind: str) -> str:
    """Returns the name of the auto class for a kind of head."""
    return "AutoModel" if kind == "body" else f"AutoModelFor{kind.title().replace('_', '')}"


def bare_class_name(config: PretrainedConfig) -> str:
    """Returns the name of the encoder's class without a head."""
    bare = class_for("body", config)
    return bare.__name__ if bare else type(config).__name__.removesuffix("Config") + "Model"


def model_class(
    architecture: str, kind: str, config: PretrainedConfig, folder: Path, trust_remote_code: bool
) -> ModelClass:
    """Returns the class to build: the one transformers has for this type and head, the bare encoder for `body`."""
    custom = getattr(config, "auto_map", None) or {}
    if trust_remote_code and auto_class(kind) in custom:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        return get_class_from_dynamic_module(custom[auto_class(kind)], str(folder))
    found = class_for(kind, config)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise SourceError(
            f"{folder}: transformers {transformers.__version__} has no {kind.replace('_', ' ')} "
            f"model of type {config.model_type!r} ({architecture}); upgrade transformers, or correct config.json"
        )
    return found
