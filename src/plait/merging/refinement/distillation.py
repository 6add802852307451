"""Label-free distillation of all sources at once into the merged encoder."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plait.data import held_back
from plait.encoders.modes import accelerated
from plait.errors import MergeError
from plait.merging.merged import Merged
from plait.merging.refinement.answers import (
    INPUTS,
    Answers,
    On,
    SourceTexts,
    agreement,
    ask,
    batched,
    divergence,
)
from plait.merging.refinement.files import write_back
from plait.merging.refinement.model import Head, MultiTask, has_own_pooler
from plait.training.trainer import Schedule, train

logger = logging.getLogger("plait")
PREFERENCE = "preference"
TIE = 1e-3
"""How much a divergence of 1 counts against agreement: less than one text of a few hundred, so it breaks ties."""


@dataclass(frozen=True)
class Refinement:
    """How a merge is refined.

    Attributes:
        schedule: passes over the texts, learning rate, batch size, precision, seed.
        on: `logits`, or `hidden`: the states that the heads read.
        heads: whether heads are trained too.
        dropout: whether the encoder's dropout is on.
        held_back: the share of each source's texts that judges.
        max_length: tokens a text is cut at; None for what the model takes.
    """

    schedule: Schedule
    on: On = "logits"
    heads: bool = False
    dropout: bool = False
    held_back: float = 0.1
    max_length: int | None = None


def refine(
    folder: Path, sources: Sequence[SourceTexts], settings: Refinement, *, state: Path, resume: bool = False
) -> dict[str, Any]:
    """Returns the record of a refinement; the merged checkpoint in `folder` has been refined in place.

    The encoder learns every source's answers on that source's texts: minimise Σ_j λ_j E_x D(source_j(x), merged_j(x)),
    D by the head (`Form`). Batches mix the sources. After each pass the answers on held-back texts are compared with
    those of the sources; the pass of the greatest agreement is kept, and training ends after one that neither raises it
    nor lowers the divergence.

    Args:
        folder: a merged checkpoint that nobody else reads yet.
        sources: the sources with their texts.
        settings: how.
        state: where a stopped run goes on.
        resume: whether to go on from there.

    Raises:
        MergeError: the merged weights give answers that are not finite.
        DataError: training diverged.
    """
    merged = Merged(folder)
    names = tuple(dict.fromkeys(source.task for source in sources))
    models = {name: merged.task(name).float() for name in names}
    found = distill(merged.encoder.float(), models, sources, settings, state=state, resume=resume)
    if found["kept"]:
        write_back(folder, merged, names if settings.heads else ())
    return found


def distill(
    encoder: PreTrainedModel,
    models: Mapping[str, PreTrainedModel],
    sources: Sequence[SourceTexts],
    settings: Refinement,
    *,
    state: Path,
    resume: bool = False,
) -> dict[str, Any]:
    """Returns the record of a refinement of models in memory, by task, that share an encoder; see `refine`."""
    owners = [has_own_pooler(model, encoder) for model in models.values()]
    own = any(owners)
    heads = [Head(model, own_pooler=mine) for model, mine in zip(models.values(), owners, strict=True)]
    places = [list(models).index(source.task) for source in sources]
    network = MultiTask(encoder, heads, places, own_pooler=own).eval()
    answers = [
        ask(source, on=settings.on, max_length=settings.max_length, own_pooler=owners[place])
        for source, place in zip(sources, places, strict=True)
    ]
    texts = Texts(answers, settings.held_back, settings.schedule.seed)
    before = judge(network, texts)
    if not math.isfinite(before[PREFERENCE]):
        raise MergeError("the merged model gives answers that are not finite: choose another method")
    start = {name: value.detach().clone() for name, value in network.state_dict().items()}
    log = learn(network, texts, settings, state, resume=resume)
    after = judge(network, texts)
    if not (kept := after[PREFERENCE] >= before[PREFERENCE]):
        network.load_state_dict(start)
        logger.warning("refinement did not raise the agreement with the sources: the merge stays as it was")
    return {"kept": kept, **record(settings, texts, log, before, after if kept else before)}


def learn(
    network: MultiTask, texts: Texts, settings: Refinement, state: Path, *, resume: bool
) -> list[dict[str, float]]:
    """Trains the encoder in place and returns the log."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith("encoder.") or settings.heads)
    network.encoder.train(settings.dropout)
    trained: Any = Trained(network, settings.dropout)
    log = train(
        trained,
        texts,
        state,
        objective=Distillation(texts, settings.on == "hidden"),
        schedule=settings.schedule,
        judge=lambda _: judge(network, texts),
        best=PREFERENCE,
        checkpoints=True,
        resume=resume,
        stop_when_level=("agreement", "closeness"),
    )
    network.eval()
    return log


class Trained(nn.Module):
    """The network as the Trainer sees it: with dropout only where that is wanted."""

    def __init__(self, network: MultiTask, dropout: bool) -> None:
        """Wraps a network."""
        super().__init__()
        self.network, self.dropout = network, dropout

    def forward(self, **inputs: Any) -> dict[int, Tensor]:
        """Returns the network's answers."""
        found: dict[int, Tensor] = self.network(**inputs)
        return found

    def train(self, mode: bool = True) -> Trained:
        """Sets the mode; without dropout everything stays in evaluation mode."""
        super().train(mode and self.dropout)
        return self


def teaching(source: SourceTexts, settings: Refinement) -> SourceTexts:
    """Returns a source without the texts that a refinement will hold back: what is fitted before must not see them."""
    rows, _ = held_back(len(source.examples), settings.held_back, settings.schedule.seed)
    return replace(source, examples=source.examples.select(rows.tolist()))


@dataclass(frozen=True)
class Texts:
    """The texts of all sources as one data set: each knows its source and its place among that source's answers."""

    answers: Sequence[Answers]
    share: float
    seed: int

    @cached_property
    def split(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Returns the texts that teach and those held back, as (source, row)."""
        teach, held = [], []
        for index, one in enumerate(self.answers):
            # By text: windows of one context overlap.
            texts = one.encoded.rows
            rows, others = (set(part.tolist()) for part in held_back(max(texts) + 1, self.share, self.seed))
            teach += [(index, row) for row, text in enumerate(texts) if text in rows]
            # Where nothing is held back all texts judge: a last resort for a handful.
            held += [(index, row) for row, text in enumerate(texts) if text in (others or rows)]
        return teach, held

    @cached_property
    def shares(self) -> list[float]:
        """Returns what a text of each source counts in a mean over the texts that teach.

        Sources count by λ alone, however many texts they have.
        """
        taught = [index for index, _ in self.split[0]]
        total = sum(one.weight for one in self.answers)
        return [one.weight / total * len(taught) / taught.count(i) for i, one in enumerate(self.answers)]

    @property
    def lengths(self) -> list[int]:
        """Returns the number of tokens of each text."""
        return [len(self._inputs(*place)["input_ids"]) for place in self.split[0]]

    def __len__(self) -> int:
        return len(self.split[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, row = self.split[0][index]
        return {**self._inputs(source, row), "source": source, "row": row}

    def _inputs(self, source: int, row: int) -> dict[str, Any]:
        return {k: v for k, v in self.answers[source].encoded.features[row].items() if k in INPUTS}

    def collate(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Returns some of the texts as one batch."""
        return self.answers[0].encoded.collate(features)


@dataclass(frozen=True)
class Distillation:
    """How far the answers are from the sources', a term per source.

    Over all texts the sum of the terms is Σ_j λ_j E_j[D] / Σ_j λ_j.
    """

    texts: Texts
    hidden: bool

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Returns the terms of one batch."""
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        source, row = batch["source"], batch["row"]
        found: dict[int, Tensor] = model(source=source, hidden=self.hidden, **inputs)
        terms = {}
        for index, said in found.items():
            mine = source == index
            one, mask = self.texts.answers[index], inputs["attention_mask"][mine].bool()
            target = padded_to(one.of(row[mine].tolist(), said.device), said)
            lost = divergence(one, said.float(), target, mask).sum() / len(source)
            terms[one.name] = lost * self.texts.shares[index]
        return terms


def padded_to(target: Tensor, said: Tensor) -> Tensor:
    """Returns answers with as many tokens as those that they are compared with."""
    missing = said.shape[1] - target.shape[1] if said.dim() == 3 else 0
    return torch.nn.functional.pad(target, (0, 0, 0, missing)) if missing else target


def judge(network: MultiTask, texts: Texts) -> dict[str, float]:
    """Returns the agreement with the sources on held-back texts: the preference first, the mean, each source's."""
    agreed, lost = {}, {}
    mode = network.training
    network.eval()
    with torch.inference_mode(), accelerated(network) as device:
        for index, one in enumerate(texts.answers):
            rows = [row for source, row in texts.split[1] if source == index]
            parts = [_compared(network, one, index, *batch) for batch in batched(one.encoded, rows, device=device)]
            agreed[one.name] = float(torch.cat([part[0] for part in parts]).mean())
            lost[one.name] = float(torch.cat([part[1] for part in parts]).mean())
    network.train(mode)
    shares = {one.name: one.weight for one in texts.answers}
    mean, far = (
        sum(shares[name] * value for name, value in found.items()) / sum(shares.values())
        for found in (agreed, lost)
    )
    return {
        PREFERENCE: mean - TIE * min(far, 1.0) if math.isfinite(far) else math.nan,
        "agreement": mean,
        "divergence": far,
        "closeness": -far,
        **{f"agreement/{name}": value for name, value in agreed.items()},
    }


def _compared(
    network: MultiTask, one: Answers, index: int, rows: list[int], inputs: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    mask = inputs["attention_mask"].bool()
    source = torch.full((len(rows),), index, device=mask.device)
    [said] = network(source, hidden=one.form.name == "HIDDEN", **inputs).values()
    target = padded_to(one.of(rows, said.device), said)
    return agreement(one, said, target, mask).cpu(), divergence(one, said, target, mask).cpu()


def record(
    settings: Refinement,
    texts: Texts,
    log: Sequence[Mapping[str, float]],
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> dict[str, Any]:
    """Returns what a manifest says of a refinement: texts, passes, agreement before and after, per pass and source."""
    judged = [
        {k.removeprefix("eval_"): round(v, 5) for k, v in entry.items() if k.startswith("eval_") or k == "epoch"}
        for entry in log
        if f"eval_{PREFERENCE}" in entry
    ]
    taught = texts.split[0]
    best = max(judged, key=lambda one: one[PREFERENCE], default={})
    counts = {
        one.name: (
            len({one.encoded.rows[row] for index, row in taught if index == i}), max(one.encoded.rows) + 1
        )
        for i, one in enumerate(texts.answers)
    }  # fmt: skip
    return {
        "on": settings.on,
        "heads": settings.heads,
        "passes": len(judged),
        "best_pass": round(best["epoch"]) if best else 0,
        "texts": {name: taught for name, (taught, _) in counts.items()},
        "held_back": {name: every - taught for name, (taught, every) in counts.items()},
        "divergence": {"before": round(before["divergence"], 6), "after": round(after["divergence"], 6)},
        "agreement": {"before": round(before["agreement"], 5), "after": round(after["agreement"], 5)},
        "by_source": {
            one.name: {
                "before": round(before[f"agreement/{one.name}"], 5),
                "after": round(after[f"agreement/{one.name}"], 5),
            }
            for one in texts.answers
        },
        "by_pass": [{k: v for k, v in one.items() if k not in (PREFERENCE, "closeness")} for one in judged],
    }
