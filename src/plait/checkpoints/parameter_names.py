"""Which stored tensor is which parameter, of body or head: asked of the model class, never guessed."""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.initialization import no_init_weights
from transformers.models.auto import modeling_auto as auto

from plait.boundary import reading
from plait.checkpoints.headers import Header
from plait.encoders.experts import fused_name
from plait.encoders.heads import (
    HEAD_MAPPINGS,
    PRETRAINING,
    ModelClass,
    class_for,
    class_names,
)
from plait.errors import SourceError, listed

WRAPPERS = ("module.", "_orig_mod.", "model.", "base_model.model.", "module._orig_mod.", "_orig_mod.module.")
"""What wrappers put before the names of what they wrap: data parallelism, compilation, Lightning, PEFT."""


@dataclass(frozen=True)
class Names:
    """Body-relative and head parameter names, each with the name under which the file stores it.

    All of those begin with `wrapper`, where something wrapped the model in training.
    """

    body: Mapping[str, str]
    head: Mapping[str, str]
    wrapper: str = ""


def skeleton(
    cls: ModelClass, config: PretrainedConfig, where: str, *, stored: int = 100_000, **options: Any
) -> PreTrainedModel:
    """Returns the model on the meta device: names and shapes without memory or random draws.

    Args:
        cls: the class to build.
        config: what it is built from.
        where: what messages call it.
        stored: how many tensors its files hold; a config that asks for many more is refused while it is built.
        options: go to the class.

    Raises:
        SourceError: a config that contradicts itself, or that describes much more than is stored.
    """
    # Tied weights are stored once, a head or pooler not at all.
    most, what = 2 * stored + 100, f"config.json does not build a {cls.__name__}"
    with reading(where, what, advice="correct it"), at_most(most), torch.device("meta"), no_init_weights():
        return cls(copy.deepcopy(config), **options)


@contextmanager
def at_most(most: int) -> Iterator[None]:
    """Stops a model that is built inside, in this thread, as soon as it has more than `most` parameters."""
    count, thread = 0, get_ident()

    def counted(*_: Any) -> None:
        nonlocal count
        count += get_ident() == thread
        if count > most:
            raise ValueError(f"it has more than {most:,} parameters, many more than are stored")

    handle = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


def check_size(
    cls: ModelClass, config: PretrainedConfig, headers: Mapping[str, Header], where: str, *, shapes: bool = True
) -> None:
    """Raises `SourceError` where a config describes a model much larger than what is stored, or of other shapes.

    Loading such a model would draw what is missing, of whatever size the config says. Without `shapes`, those may
    differ: a new head has its own.
    """
    built = skeleton(cls, config, where, stored=len(headers)).state_dict()
    if wrapper := wrapper_of(headers, built, cls.base_model_prefix):
        raise SourceError(
            f"{where}: the name of every tensor begins with {wrapper!r}, of what wrapped the model in training: "
            "save the model inside (its state_dict without this prefix)"
        )
    wanted = sum(tensor.numel() for tensor in built.values())
    held = sum(math.prod(header.shape) for header in headers.values())
    if wanted > 2 * held + 10_000_000:
        raise SourceError(
            f"{where}: config.json describes {wanted:,} numbers, the files hold {held:,}: correct it, or download "
            "the weights again"
        )
    if shapes and (problems := _misshapen({name: name for name in headers}, built, headers)):
        raise SourceError(f"{where}: the weights do not fit {cls.__name__}: {listed(problems)}")


def match(model: PreTrainedModel, headers: Mapping[str, Header], kind: str, where: str) -> Names:
    """Returns the names of body and head; one error lists all that is missing, extra or misshapen."""
    expected = model.state_dict()
    prefix = f"{model.base_model_prefix}."
    stored, twice = _stored_names(model, headers, expected)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    parts = _parts_of_experts(stored, expected, headers)
    problems = [
        *twice,
        *_absent(model, {**stored, **dict.fromkeys(parts, where)}, parameters),
        *_unexpected(model, stored, expected, kind),
        *_misshapen(stored, expected, headers),
    ]
    if problems:
        _explain(headers, where)
        raise SourceError(f"{where}: the weights do not fit {type(model).__name__}: {listed(problems)}")
    names = [name for name in expected if name in parameters and name in stored]
    names += [name for inside in parts.values() for name in inside]
    wrapper = wrapper_of(headers, expected, model.base_model_prefix)
    if kind == "body":
        return Names({name: stored[name] for name in names}, {}, wrapper)
    return Names(
        {name.removeprefix(prefix): stored[name] for name in names if name.startswith(prefix)},
        {name: stored[name] for name in names if not name.startswith(prefix)},
        wrapper,
    )


def _explain(headers: Mapping[str, Header], where: str) -> None:
    """Raises where one fact explains why no weight fits: all tensors, or many, are empty."""
    if headers and all(0 in header.shape for header in headers.values()):
        raise SourceError(
            f"{where}: all {len(headers)} tensors are empty, as DeepSpeed ZeRO-3 saves them: gather the weights with "
            "zero_to_fp32.py, which lies in the run's folder, or save with stage3_gather_16bit_weights_on_model_save"
        )
    empty = [name for name, header in headers.items() if 0 in header.shape]
    if len(empty) > len(headers) // 2:
        raise SourceError(
            f"{where}: {len(empty)} of {len(headers)} tensors are empty ({listed(empty, 3)}), as partitioned training "
            "(DeepSpeed ZeRO-3, FSDP) leaves them: gather the weights first, with zero_to_fp32.py of the run's folder"
        )


def wrapper_of(headers: Iterable[str], expected: Mapping[str, Any], prefix: str) -> str:
    """Returns what stands before the name of every stored tensor and is none of the model's own names."""
    names = list(headers)
    own = f"{prefix}."
    for wrapper in sorted(WRAPPERS, key=len, reverse=True):
        if not names or wrapper == own or not all(name.startswith(wrapper) for name in names):
            continue
        rest = {name.removeprefix(wrapper) for name in names}
        known = {*expected, *(f"{own}{name}" for name in expected)}
        if known.isdisjoint(names) and not known.isdisjoint(rest):
            return wrapper
    return ""


def type_of(architectures: Any) -> str:
    """Returns the model type whose class a config records, or examples of types."""
    recorded = architectures[0] if isinstance(architectures, list) and architectures else None
    tables = [table for name, table in vars(auto).items() if name.endswith("MAPPING_NAMES")]
    for table in tables:
        for kind, names in table.items():
            if recorded is not None and recorded in ((names,) if isinstance(names, str) else names or ()):
                return f'"model_type": "{kind}", to which {recorded} belongs'
    return "bert or modernbert"


def prefix_in(model: PreTrainedModel) -> str:
    """Returns what names of the body begin with in a model; nothing where it is no part of its own (T5)."""
    return "" if model.base_model is model else str(model.base_model_prefix)


def language_head(
    model: PreTrainedModel, body: PreTrainedModel, headers: Mapping[str, Header], where: str
) -> dict[str, str] | None:
    """Returns the parameters of a language model's head by the names they are stored under, without tied ones.

    None where the files lack a part of it, which transformers would draw at random, or no body can be told from it.
    The head is what the bare `body` lacks where the model has no module for a body (T5).

    Raises:
        SourceError: a part of another shape than the config's.
    """
    expected = model.state_dict()
    stored, _ = _stored_names(model, headers, expected)
    names = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    if model.base_model is model:
        inside = {name for name, _ in body.named_parameters(remove_duplicate=False)}
        names = [n for n in names if n not in inside]
    else:
        names = [n for n in names if not n.startswith(f"{model.base_model_prefix}.")]
    if type(model) is type(body) or _absent(model, stored, names):
        return None
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    bare = {f"{model.base_model_prefix}.{n}" for n in stored}  # a file of the bare body has no prefix
    kept = {n: stored[n] for n in names if n in stored and tied.get(n) not in stored and tied.get(n) not in bare}
    if problems := _misshapen(kept, expected, headers):
        raise SourceError(f"{where}: the weights do not fit {type(model).__name__}: {listed(problems)}")
    return kept


def left_out(model: PreTrainedModel, headers: Mapping[str, Header], taken: Iterable[str]) -> tuple[str, ...]:
    """Returns the stored tensors that are no part of what is opened: neither taken, nor a buffer, nor tied to one."""
    expected, used = model.state_dict(), set(taken)
    stored, _ = _stored_names(model, headers, expected)
    ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), r"(^|\.)position_ids$", r"rotary_emb\.inv_freq"]
    pattern = re.compile("|".join(f"({p})" for p in ignored))
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    extra = [file for name, file in stored.items() if file not in used and name not in tied]
    return tuple(name for name in extra if not pattern.search(name) and name not in expected)


def _parts_of_experts(
    stored: Mapping[str, str], expected: Mapping[str, torch.Tensor], headers: Mapping[str, Header]
) -> dict[str, list[str]]:
    """Returns which stored matrices of single experts make up a fused parameter, where all of it is there."""
    found: dict[str, list[str]] = {}
    for name in stored:
        if (fused := fused_name(name)) is not None and fused in expected:
            found.setdefault(fused, []).append(name)
    sizes = {name: sum(math.prod(headers[stored[part]].shape) for part in parts) for name, parts in found.items()}
    return {name: parts for name, parts in found.items() if sizes[name] == expected[name].numel()}


def _stored_names(
    model: PreTrainedModel, headers: Iterable[str], expected: Mapping[str, torch.Tensor]
) -> tuple[dict[str, str], list[str]]:
    """Returns model name to stored name, renamed as transformers does on loading, and names that are there twice."""
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    prefix, table = model.base_model_prefix, dict(expected)
    found: dict[str, str] = {}
    twice = []
    headers = list(headers)
    wrapper = wrapper_of(headers, expected, prefix)
    for stored in headers:
        plain = stored.removeprefix(wrapper)
        exact = plain in table
        name = plain if exact else rename_source_key(plain, renamings, converters, prefix, table)[0]
        # A mixture's experts are stored one by one and fused on loading: they merge as they are stored.
        if not exact and ".experts." in plain and name.rpartition(".")[0].endswith(".experts"):
            name = f"{name.rpartition('.')[0]}.{plain.rpartition('.experts.')[2]}"
        if name in found:
            twice.append(f"{stored} and {found[name]} are one parameter")
        found[name] = stored
    return found, twice


def stored_names(model: PreTrainedModel, headers: Mapping[str, Header]) -> dict[str, str]:
    """Returns the stored name of each of a model's parameters and buffers that the files hold."""
    expected = model.state_dict()
    return {name: file for name, file in _stored_names(model, headers, expected)[0].items() if name in expected}


def absent(model: PreTrainedModel, stored: Mapping[str, Any]) -> list[str]:
    """Returns the parameters of a model that are not stored, nor tied to one that is, nor optional."""
    known = {name: name for name in stored}
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return [problem.removeprefix("missing ") for problem in _absent(model, known, names)]


def _absent(model: PreTrainedModel, stored: Mapping[str, str], parameters: Iterable[str]) -> list[str]:
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    absent = [name for name in sorted(parameters) if name not in stored and tied.get(name) not in stored]
    ignored = "|".join(model._keys_to_ignore_on_load_missing or ()) or r"(?!)"
    absent = [name for name in absent if not re.search(ignored, name)]
    return [f"missing {name}" for name in absent if name not in (_optional(model) if absent else ())]


def _optional(model: PreTrainedModel) -> set[str]:
    """Returns the parameters that the bare encoder's class can do without: those of the pooling layer."""
    if "add_pooling_layer" not in inspect.signature(type(model).__init__).parameters:
        return set()
    without = skeleton(type(model), model.config, "", add_pooling_layer=False)
    return {name for name, _ in model.named_parameters()} - {name for name, _ in without.named_parameters()}


def _unexpected(
    model: PreTrainedModel, stored: Mapping[str, str], expected: Mapping[str, torch.Tensor], kind: str
) -> list[str]:
    """Returns what the file holds beyond the class, save buffers and the heads around a bare body."""
    extra = [name for name in stored if name not in expected]
    if kind == "body":
        return []  # language-modelling heads; those of tasks are looked for by `refuse_lost_head`
    buffers = [name for name, _ in model.named_buffers()]
    patterns = [
        *(model._keys_to_ignore_on_load_unexpected or ()),
        *(re.escape(name) + "$" for name in buffers),
    ]
    patterns += [r"(^|\.)position_ids$", r"rotary_emb\.inv_freq"]
    kept = [name for name in extra if not re.search("|".join(f"({p})" for p in patterns), name)]
    spare = _spare(model) if kept else set()
    return [f"unexpected {stored[name]}" for name in kept if name not in spare]


def refuse_lost_head(
    architecture: str, config: PretrainedConfig, headers: Iterable[str], names: Names, where: str
) -> None:
    """Raises when weights opened as a bare body hold the whole head of a task: it would be lost without a word."""
    extra = set(headers) - set(names.body.values())
    if not extra or architecture not in class_names("body", config) or architecture.endswith(PRETRAINING):
        return
    for cls in filter(None, (class_for(kind, config) for kind in HEAD_MAPPINGS)):
        model = skeleton(cls, config, where)
        head = [name for name in model.state_dict() if not name.startswith(f"{model.base_model_prefix}.")]
        if extra.issuperset(head):
            raise SourceError(
                f"{where}: the weights hold the head of a {cls.__name__} ({listed(head)}), but config.json says "
                f"{architecture}; set `architectures` to the class it was trained as"
            )


def _spare(model: PreTrainedModel) -> set[str]:
    """Returns the body's parameters, prefixed, among them those that this task's class leaves out."""
    bare = class_for("body", model.config)
    if bare is None:
        return set()
    names = [name for name, _ in skeleton(bare, model.config, "").named_parameters()]
    return {f"{model.base_model_prefix}.{name}" for name in names}


def _misshapen(
    stored: Mapping[str, str], expected: Mapping[str, torch.Tensor], headers: Mapping[str, Header]
) -> list[str]:
    return [
        f"{name} is {list(headers[stored[name]].shape)}, expected {list(tensor.shape)} from config.json"
        for name, tensor in expected.items()
        if name in stored and headers[stored[name]].shape != tuple(tensor.shape)
    ]
