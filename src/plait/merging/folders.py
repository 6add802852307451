"""How a merged checkpoint lies in its folder: transformers opens the top and each task's folder by itself.

At the top lies the shared encoder, under the names that models with a head give it, so that any class of the family
finds it; a merge with one task is that task's model. `tasks/<name>/` has the task's config, `head.safetensors`, links
to the files of encoder and tokenizer, and an index that says what lies where.
"""

from __future__ import annotations

import filecmp
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from plait.boundary import reading
from plait.checkpoints import parameter_names
from plait.checkpoints.beside import SETTINGS, module_folders
from plait.checkpoints.checkpoint import read_config
from plait.checkpoints.tokenizers import has_tokenizer, tokenizer_files
from plait.encoders.heads import language_class, model_class
from plait.errors import SourceError, listed
from plait.hub import SAFETENSORS
from plait.reports.record import Task

TASKS = "tasks"
HEAD = "head.safetensors"
"""Behind `encoder.safetensors` in the alphabet: where both hold a pooler, transformers takes that of the later file."""
INDEX = f"{SAFETENSORS}.index.json"
logger = logging.getLogger("plait")


def head_file(folder: Path, task: str) -> Path:
    """Returns the file of a task's head; before there were links it was called like that of a whole model."""
    place = folder / TASKS / task
    return place / HEAD if (place / HEAD).is_file() else place / SAFETENSORS


def names_in(file: Path) -> dict[str, int]:
    """Returns the parameters of a safetensors file with their bytes, from its header alone."""
    if not file.is_file():
        return {}
    with safe_open(file, "pt") as handle:
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
        return {name: _bytes(part.get_dtype(), part.get_shape()) for name, part in slices.items()}


def _bytes(dtype: str, shape: list[int]) -> int:
    digits = re.search(r"\d+", dtype)
    return torch.Size(shape).numel() * (int(digits[0]) // 8 if digits else 1)


def weight_files(folder: Path) -> list[Path]:
    """Returns the files of the encoder at the top of a merged checkpoint."""
    return sorted(folder.glob("model*.safetensors"))


def complete(folder: Path, tasks: Iterable[str]) -> None:
    """Makes each task's folder a checkpoint that transformers opens; takes hardly any space."""
    shared = {file.name: names_in(file) for file in weight_files(folder)}
    everything = {name for names in shared.values() for name in names}
    for task in tasks:
        place = folder / TASKS / task
        own = names_in(place / HEAD)
        whole = everything.issuperset(own)
        links = {name: name if whole else name.replace("model", "encoder", 1) for name in shared}
        if whole and len(shared) > 1:
            links[INDEX] = INDEX
        elif not whole:
            _write_index(place, {links[file]: names for file, names in shared.items()}, own)
        if not has_tokenizer(place):
            links |= {file.name: file.name for file in tokenizer_files(folder)}
        links |= {name: name for name in _modules(folder, own)}
        for target, name in links.items():
            _link(place / name, folder / target)


def _modules(folder: Path, own: Collection[str]) -> list[str]:
    """Returns the files of an embedding model's modules, which tasks without a head share."""
    if own:
        return []
    settings = [name for name in SETTINGS if (folder / name).is_file()]
    inside = [file for place in module_folders(folder) for file in (folder / place).iterdir()]
    return [*settings, *(str(file.relative_to(folder)) for file in inside)]


def _write_index(place: Path, shared: dict[str, dict[str, int]], own: dict[str, int]) -> None:
    """Writes where each parameter of a task's model lies: its own in the head's file, before the encoder's."""
    prefix = _prefix(place)
    body = {name: file for file, names in shared.items() for name in names if name.startswith(prefix)}
    sizes = {name: size for names in shared.values() for name, size in names.items() if name in body} | own
    content = {
        "metadata": {"total_size": sum(sizes.values())},
        "weight_map": {**body, **dict.fromkeys(own, HEAD)},
    }
    (place / INDEX).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _prefix(place: Path) -> str:
    config = read_config(place)
    return f"{model_class('', 'body', config, place, False).base_model_prefix}."


def _link(place: Path, target: Path) -> None:
    """Makes one file appear in two places: by a link that moves with the folder, or else by a second name."""
    if place.exists() or place.is_symlink():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        place.symlink_to(os.path.relpath(target, place.parent))
        return
    try:
        os.link(target, place)
    except OSError as error:
        why = error.strerror
        logger.warning("%s: cannot be linked (%s): open this task with plait.load or plait export", place, why)


def tokenizer_place(folder: Path, task: str) -> Path:
    """Returns where a task's tokenizer lies: in its own folder where it differs, else at the top."""
    place = folder / TASKS / task
    if not has_tokenizer(place):
        return folder
    mine, shared = ({file.name: file for file in tokenizer_files(where)} for where in (place, folder))
    same = mine.keys() == shared.keys() and all(filecmp.cmp(mine[n], shared[n], shallow=False) for n in mine)
    return folder if same else place


def copy_generation(origin: Path, folder: Path) -> None:
    """Copies how a language model generates by default."""
    file = origin / "generation_config.json"
    if file.is_file():
        shutil.copyfile(file, folder / file.name)


def copy_modules(origin: Path, folder: Path) -> None:
    """Copies what an embedding model has beside its encoder."""
    for name in _modules(origin, ()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin / name, folder / name)


def language_model(folder: Path, about: Task, encoder: PreTrainedModel) -> PreTrainedModel | None:
    """Returns a language model around an encoder that is not copied; None where the task is the bare encoder.

    Raises:
        SourceError: the head is not among the weights.
    """
    place = folder / TASKS / about.name
    config = read_config(place)
    cls = language_class(about.architecture, config)
    if cls is None:
        return None
    stored = [name for file in weight_files(folder) for name in names_in(file)]
    model = parameter_names.skeleton(cls, config, str(place), stored=len(stored))
    # T5 has no module for its body: what that consists of lies side by side with the head.
    beside = model.base_model is model
    prefix = f"{model.base_model_prefix}."
    shared = set(encoder.state_dict()) if beside else set()
    wanted = [n for n in model.state_dict() if not (n in shared if beside else n.startswith(prefix))]
    own: dict[str, torch.Tensor] = {}
    with reading(folder, "the language model does not load", advice="merge again"):
        for file in weight_files(folder):
            with safe_open(file, "pt") as handle:
                own |= {name: handle.get_tensor(name).clone() for name in handle.keys() if name in wanted}  # noqa: SIM118
        for name, module in encoder.named_children() if beside else ((model.base_model_prefix, encoder),):
            setattr(model, name, module)
        model.load_state_dict(own, strict=False, assign=True)
    model.tie_weights()
    if missing := [name for name, tensor in model.named_parameters() if tensor.is_meta]:
        raise SourceError(f"{folder} lacks {listed(missing)}: the merged checkpoint is incomplete, merge again")
    model.config.return_dict = True
    model.eval()
    return model
