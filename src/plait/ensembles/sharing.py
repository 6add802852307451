"""Bottom layers for all members, tops of their own: made by replacing modules of the encoder's own class.

Nothing of an encoder is written anew. Its class keeps its forward; what a member owns is replaced, in place, by a
`PerMember` module that holds a copy per member and gives each its slice of the batch.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from plait.encoders.layers import GROUPS, GroupApplications, group, grouped, path_of_layers

TOPS = ("pooler", "final_norm")
"""Modules of encoders that follow their last layer."""
_MEMBER = re.compile(r"\.members\.(\d+)\.")
_GROUP = re.compile(rf"({GROUPS}\.)(\d+)(\.)")


@dataclass
class ActiveMembers:
    """Whose slices the batch holds at the moment, in order; shared by all private modules of a model."""

    members: int
    active: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        """Begins with everybody."""
        self.active = self.active or tuple(range(self.members))


class PerMember(nn.Module):
    """One module per member, each for its own slice of the batch: rows 0 to B−1 are the first one's, and so on."""

    def __init__(self, module: nn.Module, roster: ActiveMembers) -> None:
        """Copies `module` for everyone on the roster."""
        super().__init__()
        # Encoders read plain attributes of their layers, such as the kind of attention.
        plain = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
        for name, value in plain.items():
            setattr(self, name, value)
        self.roster = roster
        self.members = nn.ModuleList(copy.deepcopy(module) for _ in range(roster.members))

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Returns what the members' modules give for their slices, one after another."""
        active = self.roster.active
        if len(active) == 1:
            return self.members[active[0]](hidden, *args, **kwargs)
        rows = len(hidden) // len(active)
        parts = []
        for place, member in enumerate(active):
            part = slice(place * rows, (place + 1) * rows)
            mine = [_part(value, hidden, part) for value in args]
            named = {name: _part(value, hidden, part) for name, value in kwargs.items()}
            parts.append(self.members[member](hidden[part], *mine, **named))
        return _joined(parts)


def _part(value: Any, hidden: Tensor, part: slice) -> Any:
    """Returns the slice of an argument that has a row per example, anything else as it is."""
    if isinstance(value, tuple | list):
        return type(value)(_part(item, hidden, part) for item in value)
    if not isinstance(value, Tensor) or len(hidden) != (len(value) if value.dim() else 0):
        return value
    # DeBERTa hands its table of relative positions, [2·buckets, H], to every layer: that has no examples.
    padding = value.dim() == 2 and not value.is_floating_point() and value.shape == hidden.shape[:2]
    return value[part] if value.dim() > 2 or padding else value


def _joined(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, tuple):
        return tuple(_joined(column) for column in zip(*parts, strict=True))
    return first


def share(model: PreTrainedModel, shared: int, roster: ActiveMembers) -> None:
    """Gives every member its own copy of the layers from `shared` on and of all that follows them, in place."""
    base: Any = model.base_model
    if shared == base.config.num_hidden_layers:
        return
    _split_groups(base, shared, roster) if grouped(base) else _split_layers(base, shared, roster)
    for owner in {base, model}:
        for name, module in list(owner.named_children()):
            follows = name in TOPS if owner is base else module is not base
            if follows and any(True for _ in module.parameters()):
                setattr(owner, name, PerMember(module, roster))


def _split_layers(base: PreTrainedModel, shared: int, roster: ActiveMembers) -> None:
    modules = base.get_submodule(path_of_layers(base))
    assert isinstance(modules, nn.ModuleList)
    for index in range(shared, len(modules)):
        modules[index] = PerMember(modules[index], roster)


def _split_groups(base: PreTrainedModel, shared: int, roster: ActiveMembers) -> None:
    """Names the members' group g `groups + g`, beside the shared one where that is still used."""
    parent: Any = base.get_submodule(path_of_layers(base).rpartition(".")[0])
    config, own = base.config, parent.albert_layer_groups
    used = [group(config, i) for i in range(config.num_hidden_layers)]
    order = [str(g if i < shared else g + config.num_hidden_groups) for i, g in enumerate(used)]
    made = {str(g): own[g] for g in dict.fromkeys(used[:shared])}
    made |= {str(g + config.num_hidden_groups): PerMember(own[g], roster) for g in dict.fromkeys(used[shared:])}
    parent.albert_layer_groups = GroupApplications(made, order)
    # The transformer looks up a group for each application: with as many groups it finds the application itself.
    parent.config = copy.copy(config)
    parent.config.num_hidden_groups = config.num_hidden_layers


def unrolled(name: str, base: PreTrainedModel) -> list[str]:
    """Returns a parameter's names in an encoder with a group for each application; elsewhere its own name."""
    modules = base.get_submodule(path_of_layers(base))
    found = _GROUP.search(name)
    if found is None or not isinstance(modules, GroupApplications):
        return [name]
    uses = (i for i, key in enumerate(modules.order) if key == found[2])
    return [_GROUP.sub(lambda match, i=i: f"{match[1]}{i}{match[3]}", name) for i in uses]


def without_member(name: str) -> str:
    """Returns a parameter's name without whose it is."""
    return _MEMBER.sub(".", name, count=1)


def original(name: str, config: PreTrainedConfig) -> tuple[str, int | None]:
    """Returns the name of a parameter in the encoder's own class, and whose it is: a member's or everybody's."""
    found = _MEMBER.search(name)
    if found is None:
        return name, None
    plain = without_member(name)
    groups = getattr(config, "num_hidden_groups", None)
    if groups:
        plain = _GROUP.sub(lambda match: f"{match[1]}{int(match[2]) - groups}{match[3]}", plain)
    return plain, int(found[1])
