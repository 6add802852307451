"""Adapter folders of PEFT as checkpoints: what they change of their base, folded in where a tensor is read."""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from plait.checkpoints import parameter_names
from plait.checkpoints.deltas import Axis, LowRank, RowsReplaced, Scaled, columns_of, fingerprint, norms
from plait.checkpoints.headers import (
    Header,
    TensorFiles,
    has_weights,
    read_json,
    read_pickle_header,
    read_safetensors_header,
)
from plait.encoders.heads import bare_class_name, class_for, class_named, language_class
from plait.errors import SourceError, listed
from plait.hub import locate

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model"
logger = logging.getLogger("plait")
KINDS = {"LORA", "IA3", "TRAINABLE_TOKENS"}
"""Types that change weights in a way that can be written into them."""
PROMPTS = {"PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "ADAPTION_PROMPT"}
RESIDUAL = ("pissa", "olora", "loftq", "corda", "lora_ga", "milora")
"""Initialisations that change the base itself: the saved factors belong to what was left of it."""
UNFOLDABLE = (
    "layer_replication", "target_parameters", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config",
    "megatron_config", "velora_config", "kasa_config", "monteclora_config",
)  # fmt: skip
"""Settings of LoRA under which the factors mean something else, or that cannot be written into weights."""
_TASKS = {
    "SEQ_CLS": "sequence_classification", "TOKEN_CLS": "token_classification", "QUESTION_ANS": "question_answering",
}  # fmt: skip
_LANGUAGE = {"CAUSAL_LM": "CAUSAL_LM", "SEQ_2_SEQ_LM": "SEQ_TO_SEQ_CAUSAL_LM"}
_PARTS = re.compile(
    r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|ia3_l"
    r"|trainable_tokens_delta)(?:\.[^.]+?)??(?:\.(weight|bias))?$"
)


@dataclass(frozen=True)
class Adapter:
    """An adapter as it lies in a folder: its settings, and the headers of its tensors by their cleaned names."""

    folder: Path
    name: str
    settings: Mapping[str, Any]
    headers: Mapping[str, Header]

    @property
    def kind(self) -> str:
        """Returns its type, as PEFT writes it."""
        return str(self.settings.get("peft_type"))

    @property
    def base(self) -> str | None:
        """Returns the base that it records."""
        found = self.settings.get("base_model_name_or_path")
        return found if isinstance(found, str) and found.strip() else None

    def read(self, name: str) -> Tensor:
        """Returns one of its tensors."""
        header = self.headers[name]
        return TensorFiles().read(name, header).clone()

    def floats(self, name: str) -> Tensor:
        """Returns one of its tensors in float32, in which everything is computed."""
        return self.read(name).float()


def is_adapter(folder: Path) -> bool:
    """Says whether a folder holds an adapter, and not the weights of a whole model as well."""
    return (folder / CONFIG).is_file() and not has_weights(folder)


def read_adapter(folder: Path, name: str) -> Adapter:
    """Returns the adapter in a folder, having read settings and headers.

    Raises:
        SourceError: a type that cannot be folded into weights, or files that are missing or damaged.
    """
    settings = read_json(folder / CONFIG)
    check_kind(settings, name)
    for suffix, read in ((".safetensors", read_safetensors_header), (".bin", read_pickle_header)):
        if (file := folder / f"{WEIGHTS}{suffix}").is_file():
            # Biases of all layers are those of the head as it was too, beside the one that was trained.
            kept = {stored: header for stored, header in read(file).items() if ".original_module." not in stored}
            found = {cleaned(stored): replace(header, key=stored) for stored, header in kept.items()}
            return Adapter(folder, name, settings, found)
    raise SourceError(f"{folder}: {CONFIG} without weights; expected {WEIGHTS}.safetensors beside it")


def cleaned(stored: str) -> str:
    """Returns a tensor's name without what PEFT and wrappers put around the names of the model."""
    for prefix in ("module.", "_orig_mod.", "base_model.model."):
        stored = stored.removeprefix(prefix)
    return re.sub(r"\.(base_layer|modules_to_save(\.default)?|token_adapter)(?=\.)", "", stored)


def check_kind(settings: Mapping[str, Any], name: str) -> None:
    """Raises `SourceError` for what cannot be written into the weights of a base."""
    kind = str(settings.get("peft_type"))
    if kind in PROMPTS:
        raise SourceError(
            f"{name}: a {kind} adapter adds inputs and changes no weights, so there is nothing to merge: train a LoRA "
            "adapter instead, or ensemble it"
        )
    if kind not in KINDS:
        raise SourceError(
            f"{name}: adapters of type {kind} are not read; expected {listed(sorted(KINDS))}: merge it into its base "
            "first (peft: PeftModel.from_pretrained(base, folder).merge_and_unload()) and save that"
        )
    first = settings.get("init_lora_weights")
    if isinstance(first, str) and first.lower().startswith(RESIDUAL):
        raise SourceError(
            f"{name}: init_lora_weights is {first!r}, which changes the base itself: save the adapter with "
            "path_initial_model_for_weight_conversion, which makes it an ordinary one"
        )
    if odd := [key for key in UNFOLDABLE if settings.get(key)]:
        raise SourceError(
            f"{name}: {listed(odd)} in {CONFIG}: such an adapter is not read; merge it into its base first (peft: "
            "merge_and_unload) and save that"
        )


def base_folder(adapter: Adapter, given: str | Path | None, trust_remote_code: bool) -> tuple[Path, str]:
    """Returns the folder of an adapter's base and what it is called: the recorded one if it is here, else `given`.

    Raises:
        SourceError: neither is here.
    """
    recorded = adapter.base
    if recorded is not None and Path(recorded).expanduser().is_dir():
        return Path(recorded).expanduser(), recorded
    if given is not None:
        if recorded is not None and _tail(recorded) != _tail(str(given)):
            said = "%s records the base %s, which is not here: folding it into %s"
            logger.warning(said, adapter.name, recorded, given)
        return locate(given, None, trust_remote_code), str(given)
    if recorded is None:
        raise SourceError(f"{adapter.name}: an adapter that records no base: give its base with --base MODEL")
    try:
        return locate(recorded, adapter.settings.get("revision"), trust_remote_code, ask_hub=False), recorded
    except SourceError:
        raise SourceError(
            f"{adapter.name}: an adapter of {recorded}, which is not here: give it with --base MODEL, or correct "
            f"base_model_name_or_path in {adapter.folder / CONFIG}"
        ) from None


def _tail(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower()


def class_name(adapter: Adapter, config: PretrainedConfig, recorded: str) -> str:
    """Returns the class that an adapter was trained in: as it says, else that of its base."""
    task = str(adapter.settings.get("task_type"))
    told = (adapter.settings.get("auto_mapping") or {}).get("base_model_class")
    if task in _TASKS:
        found = class_for(_TASKS[task], config)
        if found is not None:
            return found.__name__
    if task in _LANGUAGE and language_class(recorded, config) is None:
        table = getattr(transformers, f"MODEL_FOR_{_LANGUAGE[task]}_MAPPING", {})
        named = table.get(type(config), None)
        return str(named.__name__) if named is not None else recorded
    if task == "FEATURE_EXTRACTION":
        return bare_class_name(config)
    return str(told) if told and class_named(str(told), config) is not None else recorded


def fold(
    adapter: Adapter, config: PretrainedConfig, headers: Mapping[str, Header], recorded: str
) -> tuple[PretrainedConfig, dict[str, Header]]:
    """Returns the configuration and headers of a base with an adapter folded in, under the names of the model.

    Args:
        adapter: what is folded in.
        config: of the base.
        headers: of the base's files.
        recorded: the base's class.

    Raises:
        SourceError: an adapter of another base, or parts of it that belong nowhere.
    """
    config = copy.deepcopy(config)
    config.architectures = [class_name(adapter, config, recorded)]
    cls = _class(config.architectures[0], config)
    model = parameter_names.skeleton(cls, _with_labels(adapter, cls, config), str(adapter.folder), stored=len(headers))
    config = model.config
    config.architectures = [cls.__name__]
    places = parameter_names.stored_names(model, headers)
    found = {name: replace(headers[stored], key=headers[stored].key or stored) for name, stored in places.items()}
    adapter = replace(adapter, headers=_in_place(adapter.headers, model))
    found |= {name: header for name, header in adapter.headers.items() if not _PARTS.search(name)}
    problems = []
    for module, parts in sorted(grouped(adapter.headers).items()):
        try:
            found |= folded(adapter, model, module, parts, found)
        except (_MisfitError, KeyError) as problem:
            problems.append(str(problem.args[0]))
    if problems:
        raise SourceError(
            f"{adapter.name}: not an adapter of this base ({listed(problems, 3)}); give the base it was trained on "
            "(--base)"
        )
    _check_head(adapter, model, found)
    return config, found


def _in_place(headers: Mapping[str, Header], model: PreTrainedModel) -> dict[str, Header]:
    """Returns an adapter's tensors by the names of a model: one trained on a bare encoder lacks its prefix."""
    prefix = f"{model.base_model_prefix}."
    modules = {name for name, _ in model.named_modules()}
    known = {name.rpartition(".")[0] for name in headers} | set(grouped(headers))
    if model.base_model is not model and not any(name.startswith(prefix) for name in known):
        return {name if _module(name) in modules else f"{prefix}{name}": header for name, header in headers.items()}
    if model.base_model is model and all(name.startswith(prefix) for name in grouped(headers)):
        return {name.removeprefix(prefix): header for name, header in headers.items()}
    return dict(headers)


def _module(name: str) -> str:
    part = _PARTS.search(name)
    return name[: part.start()] if part else name.rpartition(".")[0]


class _MisfitError(Exception):
    """A part of an adapter that its base has no place for."""


def _class(name: str, config: PretrainedConfig) -> type[PreTrainedModel]:
    found = class_named(name, config) or class_for("body", config)
    if found is None:
        raise SourceError(f"an adapter for {name}: a class that transformers does not have cannot be folded into")
    return found


def _with_labels(adapter: Adapter, cls: type[PreTrainedModel], config: PretrainedConfig) -> PretrainedConfig:
    """Returns the configuration with as many labels as the adapter's head has rows, and the names that it says."""
    own = adapter.folder / "config.json"
    if own.is_file():
        told = read_json(own)
        for key in ("id2label", "label2id", "problem_type"):
            if told.get(key):
                value = {int(row): name for row, name in told[key].items()} if key == "id2label" else told[key]
                setattr(config, key, value)
    rows = _label_rows(adapter, cls, config)
    if rows is not None and rows != config.num_labels:
        config.num_labels = rows
    _take_vocabulary(adapter, cls, config)
    return config


def _take_vocabulary(adapter: Adapter, cls: type[PreTrainedModel], config: PretrainedConfig) -> None:
    """Records the size of the vocabulary where the adapter carries embeddings of its own, with more tokens."""
    if (size := getattr(config, "vocab_size", None)) is None:
        return
    model = parameter_names.skeleton(cls, config, str(adapter.folder))
    words = [name for name, tensor in model.named_parameters() if tensor.dim() == 2 and tensor.shape[0] == size]
    if held := [adapter.headers[name].shape[0] for name in words if name in adapter.headers]:
        config.vocab_size = held[0]


def _label_rows(adapter: Adapter, cls: type[PreTrainedModel], config: PretrainedConfig) -> int | None:
    """Returns the rows of the adapter's saved head, found by asking the class for one label more."""
    built = [parameter_names.skeleton(cls, _labels(config, count), str(adapter.folder)) for count in (3, 4)]
    few, more = (dict(model.named_parameters()) for model in built)
    grown = [name for name in few if few[name].shape != more[name].shape and name in adapter.headers]
    return adapter.headers[grown[0]].shape[0] if grown and adapter.headers[grown[0]].shape else None


def _labels(config: PretrainedConfig, count: int) -> PretrainedConfig:
    changed = copy.deepcopy(config)
    changed.num_labels = count
    return changed


def grouped(headers: Mapping[str, Header]) -> dict[str, dict[str, str]]:
    """Returns by module the parts of an adapter, `lora_A` and its like, each with its tensor's cleaned name."""
    found: dict[str, dict[str, str]] = {}
    for name in headers:
        if part := _PARTS.search(name):
            kind = f"{part[1]}.bias" if part[2] == "bias" else part[1]
            found.setdefault(name[: part.start()], {})[kind] = name
    return found


def scale_of(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """Returns s: α/r, or α/√r with rank-stabilised LoRA; α may be a module's own."""
    patterns = settings.get("alpha_pattern") or {}
    own = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), None)
    alpha = float(settings.get("lora_alpha", 8) if own is None else own)
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def folded(
    adapter: Adapter, model: PreTrainedModel, module: str, parts: Mapping[str, str], base: Mapping[str, Header]
) -> dict[str, Header]:
    """Returns the tensors of a module that an adapter changes, as they are after it."""
    weight = f"{module}.weight"
    if weight not in base:
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        if weight in tied:
            raise _MisfitError(f"{module} is tied to {tied[weight]} in the base, so it cannot be changed by itself")
        raise _MisfitError(f"the base has no {module}")
    origin = base[weight]
    across = "lora_embedding_A" in parts or isinstance(model.get_submodule(module), Conv1D)
    if "ia3_l" in parts:
        return _scaled(module, adapter.floats(parts["ia3_l"]), base, across=across)
    if "trainable_tokens_delta" in parts:
        return {weight: _derived(origin, _tokens(adapter, module, parts["trainable_tokens_delta"], origin))}
    left, right = factors(adapter, module, parts, origin.shape, across=across)
    mark = fingerprint(left, right)
    found = {weight: _derived(origin, LowRank(origin, left, right, mark))}
    if "lora_magnitude_vector" in parts:
        found[weight] = _with_magnitudes(adapter, found[weight], parts, "columns" if across else "rows")
    if "lora_B.bias" in parts:
        shift = adapter.floats(parts["lora_B.bias"]) * scale_of(adapter.settings, module, left.shape[1])
        bias = base[f"{module}.bias"]
        found[f"{module}.bias"] = _derived(
            bias, LowRank(bias, shift[:, None], torch.ones(1, 1), fingerprint(shift))
        )
    return found


def _derived(origin: Header, derived: Any) -> Header:
    return replace(origin, derived=derived)


def factors(
    adapter: Adapter, module: str, parts: Mapping[str, str], shape: tuple[int, ...], *, across: bool
) -> tuple[Tensor, Tensor]:
    """Returns L [rows, r] and R [r, columns] of the change s·B·A of a weight seen as a matrix of leading rows.

    L carries s. With `across`, as for `Conv1D` and embeddings, the weight lies as [in, out], and so do the factors.
    """
    of_embedding = "lora_embedding_A" in parts
    names = ("lora_embedding_A", "lora_embedding_B") if of_embedding else ("lora_A", "lora_B")
    if missing := [name for name in names if name not in parts]:
        raise _MisfitError(f"{module} lacks {listed(missing)}")
    down, up = (adapter.floats(parts[name]).flatten(1) for name in names)
    if across:
        down, up = up.T.contiguous(), down.T.contiguous()
    wanted = (shape[0], columns_of(shape))
    if up.shape[1] != down.shape[0] or (up.shape[0], down.shape[1]) != wanted:
        found = f"{list(up.shape)} by {list(down.shape)}"
        raise _MisfitError(f"{module} is {list(shape)} in the base, the adapter's factors {found}")
    return up * scale_of(adapter.settings, module, down.shape[0]), down


def _with_magnitudes(adapter: Adapter, header: Header, parts: Mapping[str, str], axis: Axis) -> Header:
    """Returns a weight with DoRA's magnitudes: each output's weights, base and change together, get its own length."""
    sizes = adapter.floats(parts["lora_magnitude_vector"]).flatten()
    return _derived(header, Scaled(header, lambda: sizes / norms(header, axis), axis, fingerprint(sizes, axis)))


def _scaled(module: str, factor: Tensor, base: Mapping[str, Header], *, across: bool) -> dict[str, Header]:
    """Returns what (IA)³ makes of a module: inputs of feed-forward layers times a factor, else outputs and bias.

    `across` says that the weight lies as [in, out].
    """
    weight, flat = base[f"{module}.weight"], factor.flatten()
    inputs = factor.shape[0] == 1
    axis: Axis = "columns" if inputs is not across else "rows"
    if len(flat) != (columns_of(weight.shape) if axis == "columns" else weight.shape[0]):
        raise _MisfitError(f"{module} is {list(weight.shape)} in the base, the adapter's factors {list(factor.shape)}")
    names = [f"{module}.weight"] if inputs or f"{module}.bias" not in base else [f"{module}.weight", f"{module}.bias"]
    mark, axes = fingerprint(flat, axis), {f"{module}.weight": axis}
    return {n: _derived(base[n], Scaled(base[n], lambda: flat, axes.get(n, "rows"), mark)) for n in names}


def _tokens(adapter: Adapter, module: str, name: str, origin: Header) -> RowsReplaced:
    """Returns an embedding with the rows of the tokens that were trained by themselves."""
    told = adapter.settings.get("trainable_token_indices") or adapter.settings.get("token_indices") or []
    if isinstance(told, Mapping):
        told = next((rows for key, rows in told.items() if module.endswith(key)), [])
    rows = adapter.floats(name)
    if len(told) != len(rows) or columns_of(origin.shape) != rows.shape[1] or max(told, default=0) >= origin.shape[0]:
        found = f"{len(told)} rows of {list(rows.shape)} change"
        raise _MisfitError(f"{module} is {list(origin.shape)} in the base, {found}")
    return RowsReplaced(origin, dict(zip(told, rows, strict=True)), fingerprint(rows, str(list(told))))


def _check_head(adapter: Adapter, model: PreTrainedModel, found: Mapping[str, Header]) -> None:
    """Raises where neither base nor adapter has a part of the head, which training has drawn at random."""
    absent = parameter_names.absent(model, found)
    prefix = f"{model.base_model_prefix}."
    heads = [name for name in absent if not name.startswith(prefix)]
    if heads and str(adapter.settings.get("task_type")) in _TASKS:
        raise SourceError(
            f"{adapter.name}: neither the adapter nor its base has {listed(heads, 4)}: train with modules_to_save "
            "naming the head, so that it is saved with the adapter"
        )
    strangers = [name for name in found if name not in model.state_dict()]
    if lost := [name for name in strangers if name in adapter.headers]:
        raise SourceError(
            f"{adapter.name}: the adapter holds {listed(lost, 4)}, which {type(model).__name__} does not have; give "
            "the base it was trained on (--base)"
        )
