"""From an ensemble to one ordinary checkpoint of the encoder's own class: all members folded, or one of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from plait.ensembles.configuration import EnsembleConfig
from plait.ensembles.heads import last_linear
from plait.ensembles.modeling import Ensemble
from plait.ensembles.sharing import original, unrolled, without_member
from plait.errors import RecipeError, listed

PROJECTIONS = {
    "bert": "bert.pooler.dense",
    "albert": "albert.pooler",
    "roberta": "classifier.dense",
    "xlm-roberta": "classifier.dense",
    "mpnet": "classifier.dense",
}
"""Where the class of a family keeps a projection with tanh of the first token, as tanh heads have it."""
_DROPOUTS = ("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout", "cls_dropout")


def fold(model: Ensemble) -> PreTrainedModel:
    """Returns one ordinary model whose logits are the mean of the members'.

    (1/M) Σ_m (W_m h + b_m) = W̄ h + b̄: exact where the heads are linear and see the same features.

    Raises:
        RecipeError: When the members are more than a mean of weights.
    """
    config = configuration(model)
    if reasons := obstacles(config):
        raise RecipeError(
            f"this ensemble does not fold into one model: {listed(reasons)}; export one member "
            f"(--member 0 to {config.members - 1})"
        )
    return _plain(model, None if config.head == "linear" else 0)


def one_member(model: Ensemble, member: int) -> PreTrainedModel:
    """Returns one member as an ordinary model.

    Raises:
        RecipeError: When there is no such member, or the family's own class has no head of this form.
    """
    members = model.config.members
    if not 0 <= member < members:
        raise RecipeError(f"member is {member}; the ensemble has {members}: expected 0 to {members - 1}")
    return _plain(model, member)


def configuration(model: Ensemble) -> EnsembleConfig:
    """Returns an ensemble's configuration as what it is."""
    assert isinstance(model.config, EnsembleConfig)
    return model.config


def obstacles(config: EnsembleConfig) -> list[str]:
    """Returns why the members of a configuration are more than a mean of weights; nothing where they are not."""
    if config.members == 1:
        return []
    private = config.num_hidden_layers - config.shared_layers
    found = [f"each member has {private} layers of its own"] if private else []
    return found + (["its heads are not linear (tanh)"] if config.head == "tanh" else [])


def projection(config: EnsembleConfig, per_token: bool) -> str:
    """Returns where the family's own class keeps what a tanh head calls its projection.

    Raises:
        RecipeError: When it has none.
    """
    family = config.encoder.model_type
    if per_token or family not in PROJECTIONS:
        what = "token classifiers" if per_token else f"classifiers of type {family}"
        raise RecipeError(
            f"{what} of transformers have no projection with tanh, so no place for a tanh head; expected head linear, "
            f"or sequence classification with {', '.join(sorted(PROJECTIONS))}"
        )
    return PROJECTIONS[family]


def _plain(model: Ensemble, member: int | None) -> PreTrainedModel:
    config = labelled(configuration(model))
    if (
        hasattr(config, "num_hidden_groups")
        and 0 < configuration(model).shared_layers < config.num_hidden_layers
    ):
        # One group of ALBERT's serves many layers, but a member's upper layers are not what the lower ones are.
        config.num_hidden_groups = config.num_hidden_layers
    own: PreTrainedModel = model.own_classes.from_config(config, trust_remote_code=False)
    nn.Module.to(own, model.dtype)
    own.load_state_dict(_state(model, own, member))
    own.eval()
    return own


def labelled(config: EnsembleConfig) -> PreTrainedConfig:
    """Returns the encoder's configuration with the ensemble's labels, as the family's own class wants it."""
    found: PreTrainedConfig = copy.deepcopy(config.encoder)
    found.id2label = dict(config.id2label or {})
    found.label2id = {str(name): int(row) for row, name in (config.id2label or {}).items()}
    found.problem_type = config.problem_type
    for name in _DROPOUTS:
        if config.classifier_dropout is not None and hasattr(found, name):
            setattr(found, name, config.classifier_dropout)
    return found


def _state(model: Ensemble, own: PreTrainedModel, member: int | None) -> dict[str, Tensor]:
    """Returns the own class's parameters; of the heads one member's, or the mean of all."""
    config = configuration(model)
    prefix = "" if config.head == "linear" else f"{own.base_model_prefix}."
    regrouped = getattr(own.config, "num_hidden_groups", 0) != getattr(config.encoder, "num_hidden_groups", 0)
    state: dict[str, Tensor] = {}
    for name, tensor in model.encoder.state_dict().items():
        plain, owner = original(name, config.encoder)
        places = unrolled(name, model.encoder.base_model) if regrouped else [plain]
        if owner in (None, member or 0):
            state |= {prefix + without_member(place): tensor for place in places}
    heads: Any = model.heads
    if config.head == "tanh":
        place = projection(config, model.per_token)
        state |= _layer(place, heads.dense, member)
    return state | _layer(last_linear(own)[0], heads.out, member)


def _layer(place: str, stacked: Any, member: int | None) -> dict[str, Tensor]:
    """Returns one layer of a stack, or the mean of all: summed in float64, so that no digit is lost."""
    found = {}
    for name, tensor in (("weight", stacked.weight), ("bias", stacked.bias)):
        values = tensor.detach()
        found[f"{place}.{name}"] = (
            values.to(torch.float64).mean(0).to(values.dtype) if member is None else values[member]
        )
    return found
