"""From posteriors to soft targets: which teacher is believed on each text, and the distribution that follows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from plait.amalgamation.choices import Choices
from plait.amalgamation.gate_inputs import Evidence
from plait.amalgamation.gate_selection import Verdict, agreeing, describe_panel, score_texts_by_gate
from plait.amalgamation.label_space import LabelSpace, disagreement
from plait.amalgamation.objective import ObjectiveEntry
from plait.amalgamation.routing import LEAST_MARGIN, Routing, summary, temperature_from_passes
from plait.data import Examples
from plait.teachers import Posterior

Distribution = Literal["single", "mean"]
LEAST = 1e-12
MOST_STEPS = 500
CLOSE = 1e-7
Target = Float[Tensor, "n C"]


def probabilities(
    logits: Tensor, mean: Tensor | None = None, *, posterior: Distribution = "single", temperature: float = 1.0
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
    padded = [space.pad(at, p.double()) for at, p in enumerate(posteriors)]
    known = torch.stack([space.known(at) for at in range(len(padded))]).double()
    total = torch.stack(padded).sum(0)
    groups = _groups(known)
    q = (total / (total @ groups)).clamp(min=LEAST)
    for _ in range(MOST_STEPS):
        shares = (q @ known.T).clamp(min=LEAST)
        before, q = q, (total / (shares.reciprocal() @ known)).clamp(min=LEAST)
        q = q / (q @ groups)
        if float((q - before).abs().max()) < CLOSE:
            break
    weighted = q * (routing.weights.double() @ known)
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


logger = logging.getLogger("plait")

TARGETS = {"hard": hard, "soft": soft, "consensus": consensus}


@dataclass(frozen=True)
class SoftTargets:
    """What is taught, text by text.

    Attributes:
        space: The student's labels.
        routing: Whom the gate believes.
        target: [n, C], rows sum to 1.
        weight: [n], how much each text counts.
        temperatures: Per teacher T of its softmax.
        verdict: How a joint gate came to its routing.
    """

    space: LabelSpace
    routing: Routing
    target: Tensor
    weight: Tensor
    temperatures: tuple[float, ...]
    verdict: Verdict | None = None


def soft_targets(
    posteriors: Sequence[Posterior],
    space: LabelSpace,
    choices: Choices,
    truth: Tensor | None = None,
    evidence: Evidence | None = None,
) -> SoftTargets:
    """Returns the lesson that the teachers' posteriors and a gate give.

    Args:
        posteriors: Per teacher, of the same n texts.
        space: The union of the teachers' labels.
        choices: How.
        truth: [n] the texts' own labels as positions in the union, −1 where unknown; the gate `oracle` needs them.
        evidence: What else is known of the texts; the labelled ones at their end are not taught.

    Raises:
        DataError: When the gate needs what the posteriors do not hold.
    """
    evidence = evidence or Evidence()
    temperatures = _temperatures(posteriors, choices)
    verdict = score_texts_by_gate(posteriors, space, choices, temperatures, truth, evidence)
    count = len(posteriors[0].logits) - evidence.extra
    verdict = verdict.first(count)
    routing = verdict.routing
    # The objective's T is that of teachers and student alike.
    distilled = float(choices.options.get("temperature", 1.0)) if choices.gated else 1.0
    distributions = [
        probabilities(p.logits, p.mean, posterior=choices.posterior, temperature=t * distilled)[:count]
        for p, t in zip(posteriors, temperatures, strict=True)
    ]
    for warning in disagreement(distributions, space, space.teachers):
        logger.warning("%s", warning)
    target = TARGETS[choices.target](distributions, routing, space)
    weight = routing.margin if choices.margin else torch.ones(len(target))
    if choices.agreement and verdict.members:
        weight = weight * agreeing(verdict)
    if choices.margin and choices.gated and float(weight.median()) <= 2 * LEAST_MARGIN:
        logger.warning(
            "the gate %s finds no difference between the best teachers on %d of %d texts, which hardly count: choose "
            "another gate, or --no-margin",
            *(choices.gate, int((weight <= 2 * LEAST_MARGIN).sum()), len(weight)),
        )
    return SoftTargets(space, routing, target, weight, temperatures, verdict)


def _temperatures(posteriors: Sequence[Posterior], choices: Choices) -> tuple[float, ...]:
    if choices.calibrate != "temperature":
        return tuple(1.0 for _ in posteriors)
    return tuple(temperature_from_passes(p.logits, p.mean) for p in posteriors)


def tables(posteriors: Sequence[Posterior], taught: SoftTargets, entry: ObjectiveEntry) -> dict[str, Tensor]:
    """Returns what an objective needs of each text, one row a text, ready to join the student's batches.

    What belongs to several teachers is named with the teacher's number behind (`teacher_logits.0`).
    """
    columns = {"target": taught.target, "weight": taught.weight}
    for at, posterior in enumerate(posteriors):
        for name, values in _of_teacher(posterior, taught.temperatures[at]).items():
            if name in entry.inputs and values is not None:
                columns[f"{name}.{at}"] = values
    return columns


def _of_teacher(posterior: Posterior, temperature: float) -> dict[str, Tensor | None]:
    return {
        "teacher_logits": posterior.logits / temperature,
        "teacher_features": posterior.features,
        "teacher_layers": posterior.layers,
    }


def by_label(taught: SoftTargets) -> dict[str, dict[str, int]]:
    """Returns per label, as the targets have it, how many texts each teacher taught; none where nobody taught any."""
    space, labels = taught.space, taught.target.argmax(-1)
    counts = {}
    for at, name in enumerate(space.names):
        chosen = taught.routing.choice[labels == at].tolist()
        counts[name] = {t: chosen.count(n) for n, t in enumerate(space.teachers) if n in chosen}
    return counts


def routing_columns(taught: SoftTargets, texts: Iterable[Examples]) -> dict[str, list[Any]]:
    """Returns per text who taught it what, by which margin, and the weight of every teacher, in columns."""
    chunks = list(texts)
    space, routing = taught.space, taught.routing
    columns: dict[str, list[Any]] = {"row": list(range(len(routing.choice)))}
    columns["text"] = [text for chunk in chunks for text in chunk.texts]
    if chunks and chunks[0].pairs is not None:
        columns["text_pair"] = [pair for chunk in chunks for pair in chunk.pairs or ()]
    columns["teacher"] = [space.teachers[at] for at in routing.choice.tolist()]
    columns["label"] = [space.names[at] for at in taught.target.argmax(-1).tolist()]
    columns["margin"] = [round(value, 6) for value in routing.margin.tolist()]
    for at, name in enumerate(space.teachers):
        columns[f"weight_{name}"] = [round(value, 6) for value in routing.weights[:, at].tolist()]
    return columns


def routing_report(taught: SoftTargets, choices: Choices, truth: Tensor | None = None) -> dict[str, Any]:
    """Returns the share of texts per teacher, the margins, and the routing accuracy where labels exist.

    Without a gate every teacher has a part in every text: then only the mean weights are told, those of
    softmax(concat z).
    """
    space = taught.space
    known = torch.stack([space.known(at) for at in range(len(space.teachers))])
    report = summary(taught.routing, space.teachers, truth, known)
    if not choices.gated:
        weights = {name: {"mean_weight": about["mean_weight"]} for name, about in report["teachers"].items()}
        report = {"texts": report["texts"], "teachers": weights}
    else:
        report["labels"] = by_label(taught)
    if taught.verdict is not None and taught.verdict.members:
        report["panel"] = describe_panel(taught.verdict, space, truth, known)
    if any(t != 1 for t in taught.temperatures):
        report["temperatures"] = {
            name: round(t, 4) for name, t in zip(space.teachers, taught.temperatures, strict=True)
        }
    return report
