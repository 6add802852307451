"""Differences between tokenizers: sources must read texts alike, or one body cannot serve them all."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from plait.checkpoints.checkpoint import Checkpoint
from plait.checkpoints.tokenizers import has_tokenizer, misfit, prefix_space, without_prefix_space
from plait.errors import listed
from plait.hub import TOKENIZER_FILES

logger = logging.getLogger("plait")
_SHOWN = 3
_SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_STAGES = {
    "normalizer": "normalizer (casing, accents)",
    "pre_tokenizer": "pre-tokenizer (how texts split into words)",
    "post_processor": "post-processor (special tokens around texts)",
    "model": "model",
}
_PROBES = (
    "The quick brown fox", "  two  spaces\tand\nlines ", "don't U.S.-based e-mail, 3.14% (ok)?!", "Café naïve ÀÉÎ ﬁ ½",
    "東京 is not Paris", "I'M SHOUTING", "a<mask>b [MASK] </s>", "😀 emoji", "http://x.org/a_b?c=d&e=1", "",
)  # fmt: skip


def tokenizer_problems(everyone: Sequence[Checkpoint], *, by_task: bool = False) -> list[str]:
    """Returns where the tokenizers of checkpoints differ from the first one's, or do not fit their own model.

    A checkpoint saved without a tokenizer is taken to share the others'; how texts are truncated or padded in length
    is a matter of use and does not count. With `by_task`, neither does a space before a text's first word, which
    taggers need: each task keeps its own.
    """
    having = [c for c in everyone if has_tokenizer(c.tokenizer_folder)]
    if not having:
        return []
    lacking = [c.name for c in everyone if not has_tokenizer(c.tokenizer_folder)]
    if lacking:
        logger.warning("no tokenizer saved with %s; taking that of %s", ", ".join(lacking), having[0].name)
    first, *others = having
    own = first.tokenizer()
    problems = _misfit(first, own)
    for other in others:
        if not same_files(first, other):
            theirs = other.tokenizer()
            problems += _misfit(other, theirs)
            mine = own
            if by_task and prefix_space(own) is not None and prefix_space(own) is (not prefix_space(theirs)):
                mine, theirs = without_prefix_space(own), without_prefix_space(theirs)
            problems += [f"tokenizers differ: {d}" for d in differences(mine, theirs, first.name, other.name)]
    return problems


def own_tokenizer(shared: Checkpoint | None, members: Sequence[Checkpoint]) -> Checkpoint | None:
    """Returns the source whose tokenizer a task keeps for itself; None where it reads texts as the shared one does.

    Sources that can be merged differ in nothing but the space before a text's first word.
    """
    having = [source for source in members if has_tokenizer(source.tokenizer_folder)]
    if shared is None or not having:
        return None
    first, *others = having
    space = prefix_space(first.tokenizer())
    if odd := [s for s in others if not same_files(first, s) and prefix_space(s.tokenizer()) != space]:
        logger.warning(
            "%s reads texts with add_prefix_space %s, %s with %s: their task is read as the first",
            *(first.name, space, listed(s.name for s in odd), not space),
        )
    return None if same_files(first, shared) or prefix_space(shared.tokenizer()) == space else first


def same_files(a: Checkpoint, b: Checkpoint) -> bool:
    """Returns whether the files are equal byte by byte, so that nothing needs parsing."""
    return all(_content(a, name) == _content(b, name) for name in TOKENIZER_FILES)


def _content(checkpoint: Checkpoint, name: str) -> bytes | None:
    path = checkpoint.tokenizer_folder / name
    return path.read_bytes() if path.is_file() else None


def _misfit(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    found = misfit(tokenizer, checkpoint.config)
    return [] if found is None else [f"the tokenizer of {checkpoint.name} {found}"]


def differences(
    a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase, name_a: str, name_b: str
) -> list[str]:
    """Returns every way in which two tokenizers read texts differently, each with the first places where it shows."""
    return [
        f"{what} ({name_a}: {mine}, {name_b}: {theirs})"
        for what, mine, theirs in (*_vocabulary(a, b), *_specials(a, b), *_stages(a, b))
    ]


def _vocabulary(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> Iterator[tuple[str, Any, Any]]:
    mine, theirs = ({i: token for token, i in t.get_vocab().items()} for t in (a, b))
    if len(mine) != len(theirs):
        yield "size of the vocabulary", len(mine), len(theirs)
    differing = sorted(i for i in mine.keys() | theirs.keys() if mine.get(i) != theirs.get(i))
    if differing:
        first = differing[:_SHOWN]
        what = f"{len(differing)} tokens, first at ids {', '.join(map(str, first))}"
        yield what, [mine.get(i) for i in first], [theirs.get(i) for i in first]


def _specials(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> Iterator[tuple[str, Any, Any]]:
    for name in (*_SPECIALS, "padding_side"):
        mine, theirs = getattr(a, name, None), getattr(b, name, None)
        if mine != theirs:
            yield name, mine, theirs


def _stages(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> Iterator[tuple[str, Any, Any]]:
    """Yields the stages that are set up differently, if that shows on a text.

    Versions of transformers write one and the same stage in several ways, so that it must show before it counts.
    """
    mine, theirs = _pipeline(a), _pipeline(b)
    stages = [what for key, what in _STAGES.items() if mine.get(key) != theirs.get(key)]
    if not stages and mine:
        return
    for text in _PROBES:
        left, right = (t(text, text[::-1])["input_ids"] for t in (a, b))
        if left != right:
            yield f"{' and '.join(stages) or 'tokens'} on {text!r}", _tokens(a, text), _tokens(b, text)
            return
    yield from _merges(mine, theirs)


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]))


def _pipeline(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Any]:
    """Returns the stages as the tokenizers library writes them, without the vocabulary (compared before)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}
    stages: dict[str, Any] = json.loads(backend.to_str())
    stages["model"].pop("vocab", None)
    return stages


def _merges(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields the first merge of a byte-pair encoding that differs; such a difference need not show on our texts."""
    left, right = (found.get("model", {}).get("merges") or [] for found in (mine, theirs))
    for rank, (a, b) in enumerate(itertools.zip_longest(left, right)):
        if a != b:
            yield f"merges, first at rank {rank}", a, b
            return
