"""From the logits of a question-answering head to answers: the best span of each context over all its windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.data.batching import Encoded
from plait.data.examples import Examples

LONGEST_ANSWER = 30


@dataclass(frozen=True)
class Answer:
    """A span of a context.

    Attributes:
        text: The span itself; empty for no answer.
        start: Its first character.
        end: The character behind its last.
        score: Its probability among the spans of its window; 0 for no answer.
    """

    text: str = ""
    start: int = 0
    end: int = 0
    score: float = 0.0


def best_answers(
    examples: Examples,
    encoded: Encoded,
    outputs: Mapping[str, Sequence[Tensor]],
    *,
    unanswerable: bool = False,
) -> list[Answer]:
    """Returns one answer per example.

    Args:
        examples: Questions and their contexts.
        encoded: The same, tokenised: one feature per window of a context.
        outputs: Per feature `start_logits` and `end_logits`, without padding.
        unanswerable: Whether a question may have no answer, given where no span beats its window's score of none.
    """
    best = [(0.0 if unanswerable else -torch.inf, Answer())] * len(examples)
    for i, row in enumerate(encoded.rows):
        logits = outputs["start_logits"][i], outputs["end_logits"][i]
        found = _best_span(*logits, (encoded.offsets or ())[i], (examples.pairs or ())[row])
        if found is not None and found[0] > best[row][0]:
            best[row] = found
    return [answer for _, answer in best]


def _best_span(
    start: Tensor, end: Tensor, spans: Sequence[tuple[int, int] | None], context: str
) -> tuple[float, Answer] | None:
    """Returns the best span of one window, behind its score less that of `no answer`."""
    inside = torch.tensor([span is not None for span in spans])
    if not inside.any():
        return None
    allowed = torch.ones(len(spans), len(spans), dtype=torch.bool).triu().tril(LONGEST_ANSWER - 1)
    allowed &= inside[:, None] & inside[None, :]
    pairs = (start[:, None] + end[None, :]).masked_fill(~allowed, -torch.inf)
    first, last = divmod(int(pairs.argmax()), pairs.shape[1])
    # Windows of one context compete by how far they beat their own "no answer".
    margin = float(pairs[first, last] - start[0] - end[0])
    begins, ends = (logits.masked_fill(~inside, -torch.inf).softmax(-1) for logits in (start, end))
    begin, stop = spans[first][0], spans[last][1]  # type: ignore[index]
    return margin, Answer(context[begin:stop], begin, stop, float(begins[first] * ends[last]))
