"""What an ensemble is, in its config.json: the encoder's own configuration, and how the members share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from transformers import PreTrainedConfig
from transformers.models.auto import configuration_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

from plait import autoclasses
from plait.autoclasses import ENSEMBLE
from plait.encoders.families import FAMILIES
from plait.errors import RecipeError, did_you_mean

HeadKind = Literal["linear", "tanh"]
OWN = ("id2label", "label2id", "problem_type", "architectures", "num_labels", "dtype", "torch_dtype")
"""Entries of a configuration that an ensemble has itself: they are not taken from its encoder's."""


class OfEncoder:
    """An attribute that is the encoder's: read from its configuration, and written there."""

    def __init__(self, default: Any = None) -> None:
        """Takes what it is where the encoder has no such attribute."""
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, config: Any, owner: type | None = None) -> Any:
        if config is None:
            return self
        found = getattr(config.encoder, self.name, None)
        return self.default if found is None else found

    def __set__(self, config: Any, value: Any) -> None:
        setattr(config.encoder, self.name, value)


class EnsembleConfig(PreTrainedConfig):
    """The configuration of M members over one encoder whose bottom `shared_layers` layers they share."""

    model_type = ENSEMBLE
    sub_configs = {"encoder": AutoConfig}  # noqa: RUF012 (the attribute's type is given by transformers)
    hidden_size = OfEncoder()
    num_hidden_layers = OfEncoder()
    num_attention_heads = OfEncoder()
    vocab_size = OfEncoder()
    type_vocab_size = OfEncoder(0)
    max_position_embeddings = OfEncoder()
    initializer_range = OfEncoder(0.02)

    def __init__(
        self,
        encoder: Mapping[str, Any] | PreTrainedConfig | None = None,
        members: int = 1,
        shared_layers: int | Literal["all"] = "all",
        head: HeadKind = "linear",
        classifier_dropout: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Describes an ensemble.

        Args:
            encoder: The encoder's configuration, as an object or as the dictionary that `to_dict` makes of it.
            members: M, at least 1.
            shared_layers: k, the number of layers from the bottom that all members share; `all` is the depth.
            head: `linear`, the head of the encoder's own class with one last layer per member; or `tanh`, a
                projection with tanh and a last layer per member, on the first token or on each token.
            classifier_dropout: The dropout of the heads; the encoder's own by default.
            **kwargs: Labels, problem type and whatever else transformers keeps in a configuration.

        Raises:
            RecipeError: When these contradict each other.
        """
        self.encoder = _encoder(encoder)
        self.members, self.head = members, head
        depth = self.encoder.num_hidden_layers
        self.shared_layers = depth if shared_layers == "all" else shared_layers
        self.classifier_dropout = classifier_dropout
        _check(self)
        # A plain attribute: some releases of transformers set it on every configuration.
        kwargs.setdefault("pad_token_id", getattr(self.encoder, "pad_token_id", None))
        if kwargs.get("id2label") and not kwargs.get("label2id"):
            kwargs["label2id"] = {name: int(row) for row, name in kwargs["id2label"].items()}
        super().__init__(**kwargs)

    @property
    def dropout(self) -> float:
        """Returns the dropout of tanh heads."""
        rates = (
            self.classifier_dropout,
            getattr(self.encoder, "classifier_dropout", None),
            getattr(self.encoder, "classifier_dropout_prob", None),
            getattr(self.encoder, "hidden_dropout_prob", None),
            getattr(self.encoder, "dropout", None),
        )
        return float(next((rate for rate in rates if rate is not None), 0.0))


def _encoder(given: Mapping[str, Any] | PreTrainedConfig | None) -> PreTrainedConfig:
    """Returns the encoder's configuration without what the ensemble says itself."""
    if given is None:  # transformers asks every configuration for its defaults
        given = {"model_type": "bert"}
    table = dict(given.to_dict() if isinstance(given, PreTrainedConfig) else given)
    table.pop("auto_map", None)  # code of an encoder's own is no part of an ensemble
    kind = str(table.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise RecipeError(f"an ensemble's encoder is of type {kind!r}{did_you_mean(kind, FAMILIES)}")
    kept = {key: value for key, value in table.items() if key not in (*OWN, "transformers_version")}
    config: PreTrainedConfig = CONFIG_MAPPING[kind].from_dict(kept)
    return config


def _check(config: EnsembleConfig) -> None:
    depth, problems = config.num_hidden_layers, []
    if not _whole(config.members) or config.members < 1:
        problems.append(f"members is {config.members}; expected 1 or more")
    if not _whole(config.shared_layers) or not 0 <= config.shared_layers <= depth:
        problems.append(
            f"shared_layers is {config.shared_layers}; the encoder has {depth} layers: expected all, or 0 to {depth}"
        )
    if config.head not in get_args(HeadKind):
        problems.append(f"unknown head {config.head!r}{did_you_mean(str(config.head), get_args(HeadKind))}")
    rate = config.classifier_dropout
    if rate is not None and not 0 <= rate < 1:
        problems.append(f"classifier_dropout is {rate}; expected 0 or more and below 1")
    if problems:
        raise RecipeError("; ".join(problems))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


autoclasses.register_configurations(configuration_auto)
