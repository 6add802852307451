"""What stands in for the missing labels: distributions over the union, one per text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from plait.amalgamation.labels import LabelSpace
from plait.amalgamation.routing import Routing

Posterior = Literal["single", "mean"]
LEAST = 1e-12
MOST_STEPS = 500
CLOSE = 1e-7
Target = Float[Tensor, "n C"]


def probabilities(
    logits: Tensor, mean: Tensor | None = None, *, posterior: Posterior = "single", temperature: float = 1.0
) -> Tensor:
    """Returns a teacher's distribution over its own labels.

    p = softmax(z / T) of one deterministic pass (`single`), or p̄, the Monte Carlo mean as it is (`mean`)

    Args:
        logits: z.
        mean: p̄; needed for `mean`.
        posterior: which of the two.
        temperature: T, for `single` only: it brings one pass nearer to p̄.
    """
    if posterior == "mean":
        if mean is None:
            raise ValueError("posterior 'mean' needs the Monte Carlo mean")
        return mean.float()
    return torch.softmax(logits.float() / temperature, -1)


def single(teacher: int, posterior: Tensor, space: LabelSpace) -> Target:
    """Returns one teacher's distribution at its labels' places: p̃ = pad(p_i)."""
    return space.pad(teacher, posterior.float())


def hard(posteriors: Sequence[Tensor], routing: Routing, space: LabelSpace) -> Target:
    """Returns the distribution of the most competent teacher of each text: p̃ = pad(p_i*), i* = argmax_i s_i."""
    target = torch.zeros(len(routing.choice), len(space), device=routing.choice.device)
    for teacher, posterior in enumerate(posteriors):
        rows = routing.choice == teacher
        target[rows] = single(teacher, posterior[rows], space)
    return target


def soft(posteriors: Sequence[Tensor], routing: Routing, space: LabelSpace) -> Target:
    """Returns the mean of the teachers' distributions, weighted by competence: p̃ = Σ_i w_i pad(p_i)."""
    target = torch.zeros(len(routing.choice), len(space), device=routing.choice.device)
    for teacher, posterior in enumerate(posteriors):
        target += routing.weights[:, teacher, None] * single(teacher, posterior, space)
    return target


def consensus(posteriors: Sequence[Tensor], routing: Routing, space: LabelSpace) -> Target:
    """Returns the distribution over the union that agrees with all teachers, times how competent those of a label are.

    q = argmin_q Σ_i KL(p_i ‖ q(· | L_i)),  p̃(c) ∝ q(c) · Σ_{i: c ∈ L_i} w_i

    Where teachers share a label it links their distributions: q(a)/q(s) is the one's, q(b)/q(s) the other's. q is what
    a student of the objective `uhc` would reach with capacity to spare. Teachers that no chain of shared labels links
    are not compared by q, which sums to 1 over the labels of each such group; where nothing is shared p̃ is `soft`.

    Found by minorisation (as for paired comparisons): q(c) ← Σ_i p_i(c) / Σ_{i: c ∈ L_i} 1/q(L_i), which never makes
    the sum of divergences larger.
    """
    given = [space.pad(at, p.double()) for at, p in enumerate(posteriors)]
    known = torch.stack([space.known(at) for at in range(len(given))]).double()
    total = torch.stack(given).sum(0)
    groups = _groups(known)
    found = (total / (total @ groups)).clamp(min=LEAST)
    for _ in range(MOST_STEPS):
        shares = (found @ known.T).clamp(min=LEAST)
        before, found = found, (total / (shares.reciprocal() @ known)).clamp(min=LEAST)
        found = found / (found @ groups)
        if float((found - before).abs().max()) < CLOSE:
            break
    weighted = found * (routing.weights.double() @ known)
    result: Tensor = (weighted / weighted.sum(-1, keepdim=True)).float()
    return result


def _groups(known: Tensor) -> Tensor:
    """Returns which labels are of one group, [C, C]: linked by teachers that share labels, however many between."""
    linked = (known.T @ known > 0).double()
    for _ in range(len(known)):
        linked = (linked @ linked > 0).double()
    return linked


def concat(logits: Sequence[Tensor], space: LabelSpace, *, temperature: float = 1.0) -> Target:
    """Returns the softmax over all teachers' logits side by side.

    p̃ = softmax(concat_i z_i / T), the probabilities of a label that several teachers have added up

    At T = 1 it equals `soft` with the gate `energy` at temperature 1 and posteriors softmax(z_i).

    Args:
        logits: z_i, one per teacher.
        space: the union.
        temperature: T.
    """
    together = torch.softmax(torch.cat([z.float() for z in logits], -1) / temperature, -1)
    places = torch.tensor([at for columns in space.columns for at in columns], device=together.device)
    return together.new_zeros(len(together), len(space)).index_add(1, places, together)
