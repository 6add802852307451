"""A task of a merge as one ordinary transformers checkpoint on disk; apart from folders, which every merge needs."""

from __future__ import annotations

from pathlib import Path

from plait.checkpoints.checkpoint import quiet_loading
from plait.checkpoints.places import check_apart
from plait.checkpoints.tokenizers import copy_tokenizer
from plait.checkpoints.writer import atomic_folder
from plait.errors import RecipeError
from plait.merging.folders import TASKS, copy_generation, copy_modules, tokenizer_place
from plait.merging.merged import Merged, plain_state
from plait.reports.cards import exported_card
from plait.training.state import full_disk


def export_task(merged: Merged, out: Path, task: str | None, *, overwrite: bool) -> Path:
    """Returns the folder written: body, head and tokenizer of one task; of the only one by default.

    Raises:
        RecipeError: no such task, or several and none chosen.
        OutputError: the output exists, or cannot be written.
    """
    if task is None and len(merged.tasks) != 1:
        raise RecipeError(
            f"{merged.folder} has several tasks: choose one with --task ({', '.join(merged.tasks)})"
        )
    name = task or merged.tasks[0]
    model = merged.task(name)
    check_apart(out, merged.folder)
    with full_disk(out), atomic_folder(out, overwrite=overwrite) as folder:
        with quiet_loading():
            model.save_pretrained(folder, state_dict=plain_state(model))
            copy_generation(merged.folder / TASKS / name, folder)
        if merged.about(name).kind == "body":
            copy_modules(merged.folder, folder)
        copy_tokenizer(tokenizer_place(merged.folder, name), folder)
        card = exported_card(merged.manifest, name, out.name)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return out
