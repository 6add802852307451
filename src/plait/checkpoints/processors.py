"""How images are prepared for a model: the processor saved beside it, by PIL, so that no other library is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.boundary import reading
from plait.checkpoints.headers import read_json
from plait.checkpoints.tokenizers import PREPROCESSOR
from plait.data.images import PIXELS
from plait.errors import SourceError

if TYPE_CHECKING:
    from plait.checkpoints.checkpoint import Checkpoint

_OF_VERSIONS = {"image_processor_type", "feature_extractor_type", "processor_class", "_processor_class"}


def reads_images(cls: Any) -> bool:
    """Says whether a model's class takes images and nothing else."""
    return getattr(cls, "main_input_name", None) == PIXELS


def open_processor(folder: Path, name: str) -> Any:
    """Returns the image processor saved in a folder.

    Raises:
        SourceError: there is none, or a damaged one.
    """
    if not (folder / PREPROCESSOR).is_file():
        raise SourceError(
            f"{name}: no {PREPROCESSOR} in {folder}, which says how images are prepared: save the image processor there"
        )
    from transformers import AutoImageProcessor

    with reading(name, f"image processor in {folder} does not load"):
        return AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        )


def refuse_hidden(model: Any, kind: str, folder: Path) -> None:
    """Raises `SourceError` for a model with a head whose encoder has no name of its own, as in CLIP's classifier."""
    if kind != "body" and model.base_model is model:
        raise SourceError(
            f"{folder}: {type(model).__name__} keeps its encoder where other heads do not find it, none can share it: "
            "save its tower alone (such as model.vision_model.save_pretrained)"
        )


def processor_problems(everyone: Sequence[Checkpoint]) -> list[str]:
    """Returns where image models are given other pixels of one image than the first one."""
    having = [c for c in everyone if reads_images(c.model_class) and (c.folder / PREPROCESSOR).is_file()]
    problems = []
    for other in having[1:]:
        mine, theirs = (_decisive(c) for c in (having[0], other))
        problems += [
            f"{PREPROCESSOR}: {key} differs ({having[0].name}: {mine.get(key)}, {other.name}: {theirs.get(key)})"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        ]
    return problems


def _decisive(source: Checkpoint) -> dict[str, Any]:
    found = read_json(source.folder / PREPROCESSOR)
    return {key: value for key, value in found.items() if key not in _OF_VERSIONS and value is not None}
