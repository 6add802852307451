"""What lies beside a model and decides its answers: pooling, layers and prompts of embedding models, heads of others.

Files of sentence-transformers are carried where the sources agree, their layers' weights averaged; the rest is named.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

from plait.boundary import read_text, reading
from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.headers import read_headers, read_json
from plait.checkpoints.tokenizers import PREPROCESSOR
from plait.errors import SourceError, listed

MODULES, SETTINGS_OF_ENCODER, PROMPTS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
SETTINGS = (MODULES, SETTINGS_OF_ENCODER, PROMPTS)
POOLING = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
"""Switches of versions before 6, in the order in which several pooled vectors are joined."""
_ON_VECTORS = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "Pooling": {"pooling_mode": "mean", "include_prompt": True},
    "Dense": {
        "bias": True, "activation_function": "torch.nn.modules.activation.Tanh", "use_residual": False, **_ON_VECTORS,
    },
    "Normalize": _ON_VECTORS,
    SETTINGS_OF_ENCODER: {
        "do_lower_case": False, "transformer_task": "feature-extraction", "module_output_name": "token_embeddings",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    },
    PROMPTS: {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
}  # fmt: skip
"""What sentence-transformers takes where a file is silent, so that files of its versions can be compared."""
FOREIGN = {
    "model_head.pkl": "the classifier of a SetFit model",
    "config_setfit.json": "the settings of a SetFit model",
}
CROSS_ENCODER = {PROMPTS: "the settings of a cross-encoder, such as its activation"}
_OF_VERSIONS = {"__version__", "model_type", "similarity_fn_name_source"}
logger = logging.getLogger("plait")


@cache
def module_folders(folder: Path) -> tuple[str, ...]:
    """Returns the folders of an embedding model's modules, the encoder's own left out.

    Raises:
        SourceError: modules.json is not a list of modules inside the folder.
    """
    file = folder / MODULES
    if not file.is_file():
        return ()
    paths = [str(module["path"]) for module in listed_modules(file)]
    unsafe = [path for path in paths if Path(path).is_absolute() or ".." in Path(path).parts]
    if unsafe:
        raise SourceError(f"{file}: modules lie outside it ({listed(unsafe)}); expected folders inside")
    return tuple(path for path in paths if path and path != ".")


def listed_modules(file: Path) -> list[dict[str, Any]]:
    """Returns what modules.json lists."""
    with reading(file, "is not a list of modules with their path", advice="save the model again"):
        modules = json.loads(read_text(file))
        return [{"path": module["path"], "type": module.get("type")} for module in modules]


def beside_problems(sources: Sequence[Checkpoint]) -> list[str]:
    """Returns where embedding models differ beside their encoders, so that no one result can stand for them."""
    models = [source for source in sources if (source.folder / MODULES).is_file()]
    if not models:
        return []
    first, *others = models
    kinds = {module["path"]: _kind(module) for module in listed_modules(first.folder / MODULES)}
    files = [*SETTINGS, *(f"{place}/config.json" for place in module_folders(first.folder))]
    problems = []
    for other in others:
        for name in files:
            kind = kinds.get(name.rpartition("/")[0]) if "/" in name else None
            mine, theirs = (_decisive(settings_of(s.folder / name, kind)) for s in (first, other))
            if mine != theirs and not (name == PROMPTS and _prompts_agree(mine, theirs)):
                problems.append(f"{name} differs ({first.name}: {_short(mine)}, {other.name}: {_short(theirs)})")
        mine, theirs = ({n: h.shape for n, h in _weights(s).items()} for s in (first, other))
        if mine != theirs:
            problems.append(f"layers behind the encoder differ ({first.name}: {mine}, {other.name}: {theirs})")
    return problems


def warn_of_what_lies_beside(sources: Sequence[Checkpoint]) -> None:
    """Names what a result does not carry."""
    for source in sources:
        alone = {} if (source.folder / MODULES).is_file() else CROSS_ENCODER
        for name, what in {**FOREIGN, **alone}.items():
            if (source.folder / name).is_file():
                logger.warning("%s: %s (%s) is not carried by the result", source.name, name, what)
    lacking = [source.name for source in sources if not (source.folder / MODULES).is_file()]
    if lacking and len(lacking) < len(sources):
        having = next(s.name for s in sources if (s.folder / MODULES).is_file())
        logger.warning("pooling and modules of %s are carried; %s has none", having, listed(lacking))


def _kind(module: dict[str, Any]) -> str:
    return str(module["type"]).rpartition(".")[2]


def settings_of(file: Path, kind: str | None = None) -> Any:
    """Returns what a file of settings says, in the words of sentence-transformers 6 and with its defaults.

    Args:
        file: one of `SETTINGS`, or a module's `config.json`.
        kind: of the module, such as `Pooling`; its folder's name says so where it is left open.
    """
    if file.name == MODULES:
        return [(module["path"], _kind(module)) for module in listed_modules(file)] if file.is_file() else None
    kind = kind or (file.name if file.name in SETTINGS else file.parent.name.partition("_")[2])
    told = {key: value for key, value in read_json(file).items() if key not in _OF_VERSIONS} if file.is_file() else {}
    if kind == "Pooling":
        told = _pooling_of(told)
    return {**_DEFAULTS.get(kind, {}), **{key: value for key, value in told.items() if value is not None}}


def _pooling_of(told: dict[str, Any]) -> dict[str, Any]:
    modes = [mode for key, mode in POOLING.items() if told.get(key)]
    rest = {key: value for key, value in told.items() if key not in POOLING}
    if "word_embedding_dimension" in rest:
        rest["embedding_dimension"] = rest.pop("word_embedding_dimension")
    return {**({"pooling_mode": modes[0] if len(modes) == 1 else modes} if modes else {}), **rest}


def _decisive(settings: Any) -> Any:
    """Returns settings without the length limit, of which the result takes the longest, and without empty prompts."""
    if not isinstance(settings, dict):
        return settings
    kept = {key: value for key, value in settings.items() if key != "max_seq_length"}
    if "prompts" in kept:
        kept["prompts"] = {name: text for name, text in kept["prompts"].items() if text}
    return kept


def _prompts_agree(mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Says whether two models differ in that one lacks prompts, none of which is put before every text."""
    alike = {**mine, "prompts": {}} == {**theirs, "prompts": {}} and mine["default_prompt_name"] is None
    shared = mine["prompts"].keys() & theirs["prompts"].keys()
    return alike and all(mine["prompts"][name] == theirs["prompts"][name] for name in shared)


def modules_digest(source: Checkpoint) -> str:
    """Returns a hex digest of what decides an embedding beside the encoder: settings, and weights of layers."""
    places = [*SETTINGS, *(str(Path(p) / "config.json") for p in module_folders(source.folder))]
    total = xxhash.xxh3_128(repr([settings_of(source.folder / name) for name in places]).encode())
    for place in {name.rpartition("/")[0] for name in _weights(source)}:
        for file in sorted((source.folder / place).glob("*.*")):
            total.update(file.read_bytes())
    return total.hexdigest()


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:119]}…"


def _weights(source: Checkpoint) -> dict[str, Any]:
    """Returns the headers of layers behind the encoder, such as a dense one, by folder and name."""
    found: dict[str, Any] = {}
    for place in module_folders(source.folder):
        folder = source.folder / place
        if any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin")):
            found |= {f"{place}/{name}": header for name, header in read_headers(folder).items()}
    return found


def carry(sources: Sequence[Checkpoint], folder: Path, weights: Sequence[float] | None) -> None:
    """Writes into a result what lies beside its sources' encoders: settings as they are, layers averaged."""
    having = next((source.folder for source in sources if (source.folder / PREPROCESSOR).is_file()), None)
    if having is not None:
        shutil.copyfile(having / PREPROCESSOR, folder / PREPROCESSOR)
    models = [source for source in sources if (source.folder / MODULES).is_file()]
    if not models:
        return
    first = models[0].folder
    for name in SETTINGS:
        if (first / name).is_file():
            shutil.copyfile(first / name, folder / name)
    _join(models, folder)
    for place in module_folders(first):
        (folder / place).mkdir(parents=True, exist_ok=True)
        if (first / place / "config.json").is_file():
            shutil.copyfile(first / place / "config.json", folder / place / "config.json")
        _average(models, place, folder / place, [1.0] * len(models) if weights is None else list(weights))


def _join(models: Sequence[Checkpoint], folder: Path) -> None:
    """Writes the longest limit and the prompts of all sources into the settings of the first, where they differ."""
    limits = [settings_of(model.folder / SETTINGS_OF_ENCODER).get("max_seq_length") for model in models]
    if limits[0] is not None and (longest := max(limit or limits[0] for limit in limits)) > limits[0]:
        _change(folder / SETTINGS_OF_ENCODER, max_seq_length=longest)
    told = [settings_of(model.folder / PROMPTS)["prompts"] for model in models]
    prompts = {**told[0], **{name: text for one in reversed(told) for name, text in one.items() if text}}
    if prompts != told[0]:
        _change(folder / PROMPTS, prompts=prompts)


def _change(file: Path, **entries: Any) -> None:
    content = {**(read_json(file) if file.is_file() else {}), **entries}
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _average(models: Sequence[Checkpoint], place: str, folder: Path, weights: list[float]) -> None:
    from plait.checkpoints.headers import TensorFiles
    from plait.checkpoints.writer import save_tensors

    if not any(key.startswith(f"{place}/") for key in _weights(models[0])):
        return
    reader, total = TensorFiles(), sum(weights)
    headers = [read_headers(model.folder / place) for model in models]
    merged = {}
    for name, header in headers[0].items():
        parts = [reader.read(name, h[name]).double() * w for h, w in zip(headers, weights, strict=True)]
        merged[name] = (sum(parts[1:], parts[0]) / total).to(header.dtype)
    save_tensors(folder, merged)
