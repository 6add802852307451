"""Statistics that a source brings as a file; apart, as what they are of is checked against what the method needs."""

from __future__ import annotations

from plait.checkpoints.checkpoint import Checkpoint
from plait.errors import DataError, RecipeError
from plait.recipe import MethodSpec
from plait.statistics.importance import Statistics


def checked(
    found: Statistics, path: str, source: Checkpoint, estimator: str, method: MethodSpec
) -> Statistics:
    """Returns statistics saved at `path` after checking that they are of this source and of the kind the method needs.

    Raises:
        RecipeError: another estimator.
        DataError: statistics of other weights.
    """
    if found.estimator != estimator:
        raise RecipeError(
            f"{path} holds {found.estimator}, the method needs {estimator}: estimate them again"
        )
    digest = found.provenance.get("source")
    if digest is not None and digest != source.digest:
        raise DataError(f"{path} was estimated on other weights than {source.origin} (source {source.name})")
    for name in {"labels", "per"} & method.model_fields_set:
        wanted, given = getattr(method, name), found.provenance.get(name)
        if estimator != "gram" and given is not None and given != wanted:
            raise RecipeError(f"{path} was estimated with {name} {given}, the method asks for {wanted}")
    return found
