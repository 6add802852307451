"""One task of a merged checkpoint, or what an ensemble folds into, as an ordinary transformers checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path

from plait.api.ensembles import SavedEnsemble, is_ensemble, is_one_model, open_ensemble
from plait.checkpoints.places import check_apart
from plait.checkpoints.source import quiet_loading
from plait.checkpoints.tokenizers import copy_tokenizer, has_tokenizer, keep_tokenizer
from plait.checkpoints.writer import atomic_folder, check_target
from plait.ensembles.folding import fold, obstacles, one_member
from plait.errors import RecipeError, listed
from plait.merging.folders import TASKS, copy_generation, copy_modules
from plait.merging.merged import Merged, plain_state
from plait.training.state import full_disk

logger = logging.getLogger("plait")


def export(
    merged: str | Path | Merged | SavedEnsemble,
    out: str | Path,
    *,
    task: str | None = None,
    member: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Returns the folder written: a checkpoint that `AutoModel…from_pretrained` and `pipeline` read without Plait.

    Args:
        merged: a merged checkpoint, or an ensemble.
        out: the folder to write.
        task: which task of a merged checkpoint; may be left out when there is only one.
        member: which member of an ensemble; by default all of them folded into one model, or
            member 0 (with a warning) where they do not fold.
        overwrite: whether an existing output is replaced.

    Raises:
        SourceError: neither a merged checkpoint nor an ensemble.
        RecipeError: no such task, several and none chosen, or one of an ensemble; no such member.
        OutputError: the output exists.
    """
    if is_one_model(merged.folder if isinstance(merged, SavedEnsemble) else merged):
        one = merged if isinstance(merged, SavedEnsemble) else SavedEnsemble(Path(str(merged)))
        if task is not None or member:
            raise RecipeError(f"{one.folder} is one ordinary model: leave --task and --member out")
        return export_plain(one, Path(out), overwrite=overwrite)
    if isinstance(merged, SavedEnsemble) or is_ensemble(merged):
        saved = merged if isinstance(merged, SavedEnsemble) else SavedEnsemble(Path(str(merged)))
        if task is not None:
            raise RecipeError(f"--task {task}: {saved.folder} is an ensemble for one task: leave it out")
        return export_ensemble(saved, Path(out), member, overwrite=overwrite)
    if member is not None:
        raise RecipeError(f"--member {member}: {merged} is no ensemble")
    source = merged if isinstance(merged, Merged) else Merged(merged)
    if task is None and len(source.tasks) != 1:
        raise RecipeError(
            f"{source.folder} has several tasks: choose one with --task ({', '.join(source.tasks)})"
        )
    name = task or source.tasks[0]
    model = source.task(name)
    check_apart(Path(out), source.folder)
    with full_disk(Path(out)), atomic_folder(Path(out), overwrite=overwrite) as folder:
        with quiet_loading():
            model.save_pretrained(folder, state_dict=plain_state(model))
            copy_generation(source.folder / TASKS / name, folder)
        if source.about(name).kind == "body":
            copy_modules(source.folder, folder)
        if has_tokenizer(source.folder):
            copy_tokenizer(source.folder, folder)
    return Path(out)


def export_ensemble(saved: SavedEnsemble, out: Path, member: int | None, *, overwrite: bool) -> Path:
    """Returns the folder written: all members folded into one ordinary checkpoint, or one of them.

    Member 0 stands for members that are more than a mean of weights, with a warning.

    Raises:
        RecipeError: no such member, or no place for its head in the family's own class.
        OutputError: the output exists, or cannot be written.
    """
    check_apart(out, saved.folder)
    check_target(out, overwrite=overwrite)
    count = len(saved.folders)
    reasons = [] if member is not None else unfolded(saved)
    if member and saved.passes is not None:
        raise RecipeError(
            f"member is {member}; {saved.folder} is one model whose members are passes with dropout: leave it out"
        )
    if member is not None and not 0 <= member < saved.config.members * count:
        last = saved.config.members * count - 1
        raise RecipeError(f"member is {member}; {saved.folder} has {last + 1}: expected 0 to {last}")
    chosen = member or 0
    model = saved.model if count == 1 else open_ensemble(saved.folders[chosen], saved.kind)
    whole = member is None and not reasons
    plain = fold(model) if whole else one_member(model, chosen if count == 1 else 0)
    if reasons:
        logger.warning("%s", loss_of(saved, reasons))
    if saved.passes is not None:
        logger.warning(
            "the one model is exported; asked without dropout it answers like no mean of its %d passes",
            saved.passes,
        )
    with full_disk(out), atomic_folder(out, overwrite=overwrite) as folder, quiet_loading():
        plain.save_pretrained(folder)
        keep_tokenizer(saved.tokenizer, folder)
    return out


def export_plain(saved: SavedEnsemble, out: Path, *, overwrite: bool) -> Path:
    """Returns the folder written: what is an ordinary checkpoint already, without its record."""
    check_apart(out, saved.folder)
    with full_disk(out), atomic_folder(out, overwrite=overwrite) as folder, quiet_loading():
        saved.model.save_pretrained(folder)
        keep_tokenizer(saved.tokenizer, folder)
    return out


def unfolded(saved: SavedEnsemble) -> list[str]:
    """Returns why an ensemble does not fold into one model; nothing where it does."""
    several = len(saved.folders)
    return [f"they are {several} separate models"] if several > 1 else obstacles(saved.config)


def loss_of(saved: SavedEnsemble, reasons: list[str]) -> str:
    """Returns what is lost where member 0 stands for all of them."""
    total = saved.config.members * len(saved.folders)
    said = f"member 0 of {total} is exported alone, the others are left out ({listed(reasons)})"
    found = saved.report.get("validation")
    if not found:
        return f"{said}; --member chooses another one"
    name, alone = found["primary"], found["sources"]["member 0"]
    scores = f"{name} {alone[name]:.3f} on the validation data, all together {found['metrics'][name]:.3f}"
    return f"{said}: {scores}; --member chooses another one"
