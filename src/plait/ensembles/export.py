"""An ensemble as one ordinary transformers checkpoint on disk; apart from folding, which writes nothing."""

from __future__ import annotations

import logging
from pathlib import Path

from plait.checkpoints.checkpoint import quiet_loading
from plait.checkpoints.places import check_apart
from plait.checkpoints.tokenizers import keep_tokenizer
from plait.checkpoints.writer import atomic_folder, check_target
from plait.ensembles.folding import fold, obstacles, one_member
from plait.ensembles.saved import SavedEnsemble, open_ensemble
from plait.errors import RecipeError, listed
from plait.reports.cards import exported_ensemble_card
from plait.training.state import full_disk

logger = logging.getLogger("plait")


def export_saved(
    saved: SavedEnsemble, out: Path, task: str | None, member: int | None, *, overwrite: bool
) -> Path:
    """Returns the folder written: an ensemble, or the one model that came of it, as one ordinary checkpoint.

    Raises:
        RecipeError: a task, a member of what is one model, or no such member.
        OutputError: the output exists, or cannot be written.
    """
    if saved.plain:
        if task is not None or member:
            raise RecipeError(f"{saved.folder} is one ordinary model: leave --task and --member out")
        return export_plain(saved, out, overwrite=overwrite)
    if task is not None:
        raise RecipeError(f"--task {task}: {saved.folder} is an ensemble for one task: leave it out")
    return export_ensemble(saved, out, member, overwrite=overwrite)


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
        what = "All members" if whole else f"Member {chosen}"
        card = exported_ensemble_card(saved.report, out.name, what)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return out


def export_plain(saved: SavedEnsemble, out: Path, *, overwrite: bool) -> Path:
    """Returns the folder written: what is an ordinary checkpoint already, without its record."""
    check_apart(out, saved.folder)
    with full_disk(out), atomic_folder(out, overwrite=overwrite) as folder, quiet_loading():
        saved.model.save_pretrained(folder)
        keep_tokenizer(saved.tokenizer, folder)
        card = exported_ensemble_card(saved.report, out.name, "The one model")
        (folder / "README.md").write_text(card, encoding="utf-8")
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
