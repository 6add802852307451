"""An embedding model from its folder: which modules stand behind the encoder, and how texts are read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from plait.boundary import reading
from plait.checkpoints.beside import MODULES, PROMPTS, SETTINGS_OF_ENCODER, listed_modules, settings_of
from plait.checkpoints.headers import TensorFiles, read_headers
from plait.checkpoints.processors import reads_images
from plait.encoders.embedding import MODES, Dense, Embedder, Normalize, Pooling, Reading
from plait.errors import SourceError, listed

if TYPE_CHECKING:
    from plait.checkpoints.checkpoint import Checkpoint

KNOWN = ("Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")
logger = logging.getLogger("plait")


def is_embedder(source: Checkpoint) -> bool:
    """Says whether a checkpoint is read as an embedding model: a bare encoder of texts, no language model."""
    return source.kind == "body" and source.language_class is None and not reads_images(source.model_class)


def embedder_of(source: Checkpoint, **options: Any) -> Embedder:
    """Returns a checkpoint as an embedding model; `options` go to `from_pretrained`."""
    return embedder(source.folder, source.model(**options), source.tokenizer(), source.name)


def embedder(folder: Path, encoder: PreTrainedModel, tokenizer: Any, name: str) -> Embedder:
    """Returns an encoder with what its folder says of pooling, layers and prompts; without that, the mean of tokens.

    Raises:
        SourceError: a module that is not understood, or whose files are damaged.
    """
    if not (folder / MODULES).is_file():
        logger.info("%s: no %s beside it: embeddings are the mean of its tokens, of unit length", name, MODULES)
        return Embedder(encoder, Pooling(), [Normalize()], Reading())
    first, *rest = listed_modules(folder / MODULES)
    kinds = {module["path"]: str(module["type"]).rpartition(".")[2] for module in rest}
    if odd := [f"{path or '.'} ({kind})" for path, kind in kinds.items() if kind not in KNOWN]:
        raise SourceError(
            f"{folder}: modules {listed(odd)} are not understood, expected {', '.join(KNOWN)}: open it with "
            "sentence-transformers"
        )
    if [*kinds.values()][:1] != ["Pooling"] or first["path"] not in ("", "."):
        raise SourceError(
            f"{folder}: {MODULES} does not begin with an encoder and its pooling: open it with sentence-transformers"
        )
    paths = list(kinds)
    told = read_as(folder, tokenizer)
    pooling = _pooling(folder / paths[0], prompt_tokens(tokenizer, told.prompt))
    makers = {"Dense": _dense, "LayerNorm": _layer_norm, "Normalize": lambda _: Normalize()}
    with reading(folder, f"a module of {MODULES} does not load", advice="save the model again"):
        behind = [makers[kinds[path]](folder / path) for path in paths[1:] if kinds[path] in makers]
    dtype = next(encoder.parameters()).dtype
    return Embedder(encoder, pooling, [module.to(dtype) for module in behind], told)


def read_as(folder: Path, tokenizer: Any) -> Reading:
    """Returns how an embedding model reads texts: its default prompt, and the length it was saved with."""
    prompts, encoder = settings_of(folder / PROMPTS) or {}, settings_of(folder / SETTINGS_OF_ENCODER) or {}
    named = prompts.get("default_prompt_name")
    longest = encoder.get("max_seq_length") or tokenizer.model_max_length
    prompt = str(prompts.get("prompts", {}).get(named, "")) if named else ""
    return Reading(prompt, bool(encoder.get("do_lower_case")), int(longest))


def prompt_tokens(tokenizer: Any, prompt: str) -> int:
    """Returns how many tokens of a text are its prompt's, as sentence-transformers counts them."""
    if not prompt:
        return 0
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - (ids[-1] in tokenizer.all_special_ids)


def _pooling(folder: Path, skipped: int) -> Pooling:
    told = settings_of(folder / "config.json") or {}
    mode = told.get("pooling_mode", "mean")
    modes = (mode,) if isinstance(mode, str) else tuple(mode)
    if odd := [str(one) for one in modes if one not in MODES]:
        raise SourceError(f"{folder}: pooling by {listed(odd)} is not understood; expected {', '.join(MODES)}")
    return Pooling(modes, with_prompt=bool(told.get("include_prompt", True)), skipped=skipped)


def _tensors(folder: Path) -> dict[str, Any]:
    reader = TensorFiles()
    return {name: reader.read(name, header).clone() for name, header in read_headers(folder).items()}


def _dense(folder: Path) -> Dense:
    told = settings_of(folder / "config.json") or {}
    tensors = _tensors(folder)
    places = {told.get("module_input_name"), told.get("module_output_name")}
    if places != {"sentence_embedding"}:
        raise SourceError(f"{folder}: a layer on {listed(map(str, places))}; expected one on sentence_embedding")
    linear = _linear(tensors, "linear")
    added: nn.Module | None = nn.Identity() if told["use_residual"] else None
    if added is not None and "residual.weight" in tensors:
        added = _linear(tensors, "residual")
    return Dense(linear, _activation(str(told["activation_function"]), folder), added)


def _linear(tensors: Mapping[str, Any], name: str) -> nn.Linear:
    weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.load_state_dict({"weight": weight, **({} if bias is None else {"bias": bias})})
    return made


def _activation(named: str, folder: Path) -> nn.Module:
    """Returns an activation of torch by its name, which comes from a file: nothing else is looked up."""
    found = getattr(nn, named.rpartition(".")[2], None) if named.startswith("torch.nn.") else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise SourceError(
            f"{folder}: activation {named!r} is not understood; expected one such as torch.nn.modules.activation.Tanh"
        )
    made: nn.Module = found()
    return made


def _layer_norm(folder: Path) -> nn.LayerNorm:
    tensors = _tensors(folder)
    made = nn.LayerNorm(tensors["norm.weight"].shape[0])
    made.load_state_dict({name.removeprefix("norm."): tensor for name, tensor in tensors.items()})
    return made


