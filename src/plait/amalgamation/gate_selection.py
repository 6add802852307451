"""The score of a gate, or of several as one: each weighted by how well it tells the teachers' texts apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plait.amalgamation.gate import GateEntry
from plait.amalgamation.gate_inputs import Evidence, gate_inputs, needed
from plait.amalgamation.label_space import LabelSpace
from plait.amalgamation.routing import LEAST_MARGIN, Choice, Routing, Scores, route, standardize
from plait.errors import DataError
from plait.registry import Registry
from plait.teachers import Posterior

if TYPE_CHECKING:
    from plait.amalgamation.choices import Choices

JOINT: Registry[Callable[..., Verdict]] = Registry("joint gate")
"""Gates that are made of others."""
ROUNDS = 50
SETTLED = 1e-4
STUDENT = "student"
"""The member of a panel that is the student of the round before."""

Panel = Float[Tensor, "n t g"]
"""One number per text, teacher and gate."""
Owners = Int[Tensor, " m"]
"""One teacher per labelled text."""


@dataclass(frozen=True)
class Verdict:
    """What a panel says.

    Attributes:
        routing: whom to believe on each text.
        evidence: how it came to that, ready for JSON.
        members: whom each gate of the panel believes by itself.
    """

    routing: Routing
    evidence: Mapping[str, Any] = field(default_factory=dict)
    members: Mapping[str, Choice] = field(default_factory=dict)

    def first(self, count: int) -> Verdict:
        """Returns the same of the first texts alone."""
        chosen = {name: choice[:count] for name, choice in self.members.items()}
        return Verdict(self.routing.first(count), self.evidence, chosen)


@JOINT.register(
    "auto",
    paper="doi:10.2307/2346806",
    when="Start here: several gates together, no labels.",
)
def auto(panel: Panel, names: Sequence[str]) -> Verdict:
    """Returns whom several gates believe together, each weighed by how far it separates the teachers' texts.

    s_gi | text is of teacher i ~ N(a_gi, σ_gi²),  s_gi | it is not ~ N(b_gi, σ_gi²)
    w_g = mean_i (a_gi − b_gi) / σ_gi²,  L_i(x) = Σ_g w_g (s_gi(x) − (a_gi + b_gi)/2),  r(x) = softmax_i L(x)

    Differs from the paper, where raters vote and err each in their own way, in scores instead of votes.

    Found by expectation maximisation, which begins at softmax_i Σ_g of the standardised scores, with r as the
    responsibilities. Nothing looks at a label. A score is counted from the midpoint between a teacher's texts and the
    others', instead of the mean over all: that takes away that one teacher is surer than another on every text, without
    supposing that both know equally much of the corpus. The shares π = mean_x r(x) that come out are the
    estimate of how much of the corpus each teacher knows; they do not enter r, where they would feed on themselves.
    The product over gates takes them for independent witnesses, so r is surer than it should be; a weaker product
    (L divided by √G or G) lets r fade to equal shares where gates are weak. A score that is the same for all texts has
    no weight.

    Args:
        panel: s, one column per teacher and gate.
        names: the gates.
    """
    scores = torch.stack([standardize(panel[..., g]) for g in range(panel.shape[-1])], -1)
    found = torch.softmax(scores.sum(-1), -1)
    for _ in range(ROUNDS):
        weights, middles, distances = _components(scores, found)
        logits = ((scores - middles) * weights).sum(-1)
        before, found = found, torch.softmax(logits, -1)
        if float((found - before).abs().max()) < SETTLED:
            break
    told = {"gates": dict(zip(names, _members(weights, distances), strict=True)), "prior": _rounded(found.mean(0))}
    return Verdict(weights_of(logits), told, _alone(panel, names))


def _alone(panel: Panel, names: Sequence[str]) -> dict[str, Choice]:
    """Returns whom each gate believes by itself, by the scores as they are."""
    return {name: panel[..., at].argmax(-1) for at, name in enumerate(names)}


def _components(scores: Panel, shares: Scores) -> tuple[Tensor, Tensor, Tensor]:
    """Returns w_g, the midpoints [t, g], and how many standard deviations lie between the two means, [g]."""
    inside, outside = shares[..., None], (1 - shares)[..., None]
    own = (inside * scores).sum(0) / inside.sum(0).clamp(min=1e-9)
    other = (outside * scores).sum(0) / outside.sum(0).clamp(min=1e-9)
    spread = (inside * (scores - own).square() + outside * (scores - other).square()).mean(0)
    safe = spread.clamp(min=1e-6)
    gap = torch.where(spread > 0, own - other, 0.0)
    return (gap / safe).mean(0), (own + other) / 2, (gap / safe.sqrt()).mean(0)


def _members(weights: Tensor, distances: Tensor) -> list[dict[str, float]]:
    return [
        {"weight": round(float(w), 4), "separation": round(float(d), 4)}
        for w, d in zip(weights, distances, strict=True)
    ]


def _rounded(values: Tensor) -> list[float]:
    return [round(float(value), 4) for value in values]


def weights_of(logits: Scores) -> Routing:
    """Returns the routing of log-odds: r = softmax L as weights, the likeliest teacher, and by how much it leads."""
    shares = torch.softmax(logits.double(), -1)
    if shares.shape[1] < 2:
        margin = shares.new_ones(len(shares))
    else:
        best = shares.topk(2, -1).values
        margin = best[:, 0] - best[:, 1] + LEAST_MARGIN
    return Routing(torch.log_softmax(logits.double(), -1), shares.float(), logits.argmax(-1), margin.float())


@JOINT.register(
    "fitted",
    paper=None,
    when="A few dozen labelled texts are at hand (--validation).",
)
def fitted(panel: Panel, names: Sequence[str], known: Tensor, rows: Tensor) -> Verdict:
    """Returns whom several gates believe together, weighed by logistic regression on some labelled texts.

    P(teacher i has the label of x) = σ(Σ_g w_g s_gi(x) + c_i),  r(x) = softmax_i (Σ_g w_g s_gi(x) + c_i)

    One weight a gate and one constant a teacher, so that a few dozen labels do; L2-regularised as scikit-learn does by
    default. Scores are standardised over the corpus and centred over the teachers.

    Args:
        panel: s, one column per teacher and gate, of the corpus and of the labelled texts.
        names: the gates.
        known: per labelled text which teachers have its label, [m, t].
        rows: which texts of the panel these are.

    Raises:
        DataError: When the labelled texts do not tell teachers apart.
    """
    from sklearn.linear_model import LogisticRegression

    scores = torch.stack([standardize(panel[..., g]) for g in range(panel.shape[-1])], -1)
    scores = scores - scores.mean(1, keepdim=True)
    teachers = panel.shape[1]
    constants = torch.eye(teachers, dtype=scores.dtype).expand(len(scores), -1, -1)
    features = torch.cat([scores, constants], -1)
    wanted = known.reshape(-1)
    if bool(wanted.all()) or not bool(wanted.any()):
        raise DataError(
            "gate fitted: the labelled texts do not tell the teachers apart, all have the labels of all; give texts of "
            "other labels, or --gate auto"
        )
    model = LogisticRegression(fit_intercept=False, max_iter=1000)
    model.fit(features[rows].reshape(len(wanted), -1).numpy(), wanted.numpy())
    weights = torch.from_numpy(model.coef_[0])
    routing = weights_of((features * weights).sum(-1))
    told = {
        "labelled": len(rows),
        "gates": {name: {"weight": round(float(w), 4)} for name, w in zip(names, weights, strict=False)},
        "prior": _rounded(routing.weights.mean(0)),
    }
    return Verdict(routing, told, _alone(panel, names))


def score_texts_by_gate(  # noqa: PLR0917 - all that a gate may look at
    posteriors: Sequence[Posterior],
    space: LabelSpace,
    choices: Choices,
    temperatures: Sequence[float],
    truth: Tensor | None,
    evidence: Evidence,
) -> Verdict:
    """Returns whom to believe on each text: what one gate says, or several together."""
    scored = partial(gate_scores, posteriors, space, temperatures=temperatures, truth=truth, evidence=evidence)
    if not choices.joint:
        scores = scored(choices.gate_entries[0], choices.gate_options)
        if choices.calibrate == "standardize":
            scores = standardize(scores)
        alone = evidence.mass is None and choices.calibrate != "auto"
        members = {} if alone else {choices.gate: scores}
        if not members:
            return Verdict(route(scores, temperature=choices.softness))
    else:
        members = {entry.name: scored(entry, {}) for entry in members_of(choices, posteriors, evidence)}
    if evidence.mass is not None:
        members[STUDENT] = evidence.mass
    panel = torch.stack(list(members.values()), -1)
    if choices.gate == "fitted" and evidence.labelled is not None:
        rows = torch.arange(len(panel) - evidence.extra, len(panel))
        return fitted(panel, list(members), evidence.labelled, rows)
    return auto(panel, list(members))


def members_of(
    choices: Choices, posteriors: Sequence[Posterior], evidence: Evidence
) -> tuple[GateEntry, ...]:
    """Returns the gates of a joint one whose inputs are there for all teachers.

    `auto` takes `base` only where neither the words nor the updates are known: with them it would say a third time
    what they say; and `entropy` only where nothing else is.
    """
    have = {"logits"}
    have |= {"features"} if all(p.features is not None for p in posteriors) else set()
    have |= {"base"} if evidence.base is not None else set()
    have |= {"near"} if evidence.near is not None else set()
    have |= set.intersection(*(set(own) for own in evidence.teachers)) if evidence.teachers else set()
    able = [entry for entry in choices.gate_entries if have.issuperset(needed(entry, {}))]
    if choices.gate == "auto":
        names = [entry.name for entry in able]
        if {"vocabulary", "update"} & set(names):
            names = [name for name in names if name != "base"]
        names = [name for name in names if name != "entropy"] or names
        able = [entry for entry in able if entry.name in names]
    return tuple(able)


def gate_scores(
    posteriors: Sequence[Posterior],
    space: LabelSpace,
    entry: GateEntry,
    options: Mapping[str, Any],
    *,
    temperatures: Sequence[float],
    truth: Tensor | None = None,
    evidence: Evidence | None = None,
) -> Tensor:
    """Returns how competent a gate finds each teacher on each text, [n, t]."""
    columns = [
        entry.function(
            **gate_inputs(
                entry, posterior, space.known(at), logits=posterior.logits / t, truth=truth,
                evidence=evidence or Evidence(), at=at, options=options,
            ),
            **options,
        )
        for at, (posterior, t) in enumerate(zip(posteriors, temperatures, strict=True))
    ]  # fmt: skip
    return torch.stack([column.double() for column in columns], 1)


def agreeing(verdict: Verdict) -> Tensor:
    """Returns the share of a panel's gates that by themselves believe whom all together believe, per text."""
    same = [choice == verdict.routing.choice for choice in verdict.members.values()]
    return torch.stack(same).float().mean(0)


def describe_panel(verdict: Verdict, space: LabelSpace, truth: Tensor | None, known: Tensor) -> dict[str, Any]:
    """Returns of each gate of a panel its weight, how often it agrees with all, and, given labels, is right."""
    about: dict[str, dict[str, float]] = {name: dict(of) for name, of in verdict.evidence["gates"].items()}
    for name, choice in verdict.members.items():
        about[name]["agrees"] = round(float((choice == verdict.routing.choice).double().mean()), 4)
        if truth is not None and bool((truth >= 0).any()):
            labelled = truth >= 0
            right = known[choice[labelled], truth[labelled]].double().mean()
            about[name]["routing"] = round(float(right), 4)
    prior = dict(zip(space.teachers, verdict.evidence["prior"], strict=True))
    return {**verdict.evidence, "gates": about, "prior": prior}
