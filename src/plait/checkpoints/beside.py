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

from plait.boundary import read_text, reading
from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.headers import read_headers, read_json
from plait.errors import SourceError, listed

MODULES = "modules.json"
SETTINGS = (MODULES, "sentence_bert_config.json", "config_sentence_transformers.json")
FOREIGN = {
    "model_head.pkl": "the classifier of a SetFit model",
    "config_setfit.json": "the settings of a SetFit model",
}
CROSS_ENCODER = {"config_sentence_transformers.json": "the settings of a cross-encoder, such as its activation"}
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
    paths = [str(module["path"]) for module in _modules(file)]
    unsafe = [path for path in paths if Path(path).is_absolute() or ".." in Path(path).parts]
    if unsafe:
        raise SourceError(f"{file}: modules lie outside it ({listed(unsafe)}); expected folders inside")
    return tuple(path for path in paths if path and path != ".")


def _modules(file: Path) -> list[dict[str, Any]]:
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
    problems = []
    for other in others:
        for name in (*SETTINGS, *(f"{place}/config.json" for place in module_folders(first.folder))):
            mine, theirs = (_settings(s.folder / name) for s in (first, other))
            if mine != theirs:
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


def _settings(file: Path) -> Any:
    if not file.is_file():
        return None
    if file.name == MODULES:
        return [(module["path"], str(module["type"]).rpartition(".")[2]) for module in _modules(file)]
    return {key: value for key, value in read_json(file).items() if key not in _OF_VERSIONS}


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
    models = [source for source in sources if (source.folder / MODULES).is_file()]
    if not models:
        return
    first = models[0].folder
    for name in SETTINGS:
        if (first / name).is_file():
            shutil.copyfile(first / name, folder / name)
    for place in module_folders(first):
        (folder / place).mkdir(parents=True, exist_ok=True)
        if (first / place / "config.json").is_file():
            shutil.copyfile(first / place / "config.json", folder / place / "config.json")
        _average(models, place, folder / place, [1.0] * len(models) if weights is None else list(weights))


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
