"""One task of a merged checkpoint as an ordinary transformers checkpoint."""

from __future__ import annotations

from pathlib import Path

from plait.checkpoints.source import quiet_loading
from plait.checkpoints.writer import atomic_folder
from plait.errors import OutputError, RecipeError
from plait.merging.merged import Merged, has_tokenizer, plain_state


def export(
    merged: str | Path | Merged, out: str | Path, *, task: str | None = None, overwrite: bool = False
) -> Path:
    """Returns the folder written: a checkpoint that `AutoModel…from_pretrained` and `pipeline` read without Plait.

    Args:
        merged: a merged checkpoint.
        out: the folder to write.
        task: which task; may be left out when there is only one.
        overwrite: whether an existing output is replaced.

    Raises:
        SourceError: not a merged checkpoint.
        RecipeError: no such task, or several and none chosen.
        OutputError: the output exists.
    """
    source = merged if isinstance(merged, Merged) else Merged(merged)
    if task is None and len(source.tasks) != 1:
        raise RecipeError(
            f"{source.folder} has several tasks: choose one with --task ({', '.join(source.tasks)})"
        )
    model = source.task(task or source.tasks[0])
    target, place = Path(out).resolve(), source.folder.resolve()
    if target in {place, *place.parents} or place in target.parents:
        raise OutputError(
            f"output {out} and the merged checkpoint {source.folder} overlap: choose another output"
        )
    with atomic_folder(Path(out), overwrite=overwrite) as folder:
        with quiet_loading():
            model.save_pretrained(folder, state_dict=plain_state(model))
        if has_tokenizer(source.folder):
            source.tokenizer.save_pretrained(folder)
    return Path(out)
