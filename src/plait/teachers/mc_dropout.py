"""One teacher in memory: one pass without dropout and K passes with it, and their summary."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plait.checkpoints.answering import answering
from plait.checkpoints.checkpoint import Checkpoint
from plait.data import Examples, collate, encode, length_limit, plan
from plait.encoders.modes import DEAD, accelerator, injected, modes_kept, own_random_numbers, seed_of
from plait.encoders.replay import Encoder, Meter, Trunk, encoder_of, read_by_head
from plait.errors import SourceError
from plait.progress import Tick, nothing
from plait.teachers.settings import Settings
from plait.teachers.shapes import Distributions, Passes, PerDistribution, PerPass, PerText, Probabilities
from plait.teachers.teacher import acting_modules, unable

logger = logging.getLogger("plait")

Inputs = dict[str, Tensor]
Tensors = dict[str, Tensor]
TRIALS = 4
"""Passes that must all be the same before a teacher counts as one without dropout."""
FEW = 2
"""Texts that are tried."""
FAST = 256
"""Tokens in a batch from which on masks are drawn by `Masks`."""
Draws = AbstractContextManager[Any]
"""What draws the masks inside."""
MOST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Turn:
    """Which passes of which shard come next; `whole` keeps every pass instead of their summary."""

    shard: int
    number: int = 0
    passes: int = 0
    whole: bool = False


@dataclass
class Scorer:
    """A teacher ready to score: made by `scoring`."""

    name: str
    digest: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: Settings
    trunk: Trunk
    meter: Meter
    acting: tuple[nn.Module, ...]
    limit: int
    seen: Tensors = field(default_factory=dict)
    alive: bool = False

    def score(self, examples: Examples, turn: Turn, tick: Tick = nothing) -> Tensors:
        """Returns logits of the texts and what the passes of this turn gave, in the order of the texts.

        The masks follow from the seed, the teacher, the shard and the turn alone.
        """
        encoded = encode(
            examples, self.tokenizer, max_length=self.limit, config=self.model.config, labels=False
        )
        outputs: Tensors = {}
        seed = seed_of(self.settings.seed, self.digest, turn.shard, turn.number)
        with torch.inference_mode(), own_random_numbers(self.model.device, seed):
            masks = masks_from(seed, self.model.device)
            for rows in plan(encoded, self.settings.batch_size):
                inputs = self._inputs([encoded.features[row] for row in rows], encoded.padding)
                _place(outputs, rows, self._batch(inputs, turn, masks), len(encoded))
                tick(len(rows))
        return outputs

    def _inputs(self, features: Sequence[Mapping[str, Any]], padding: Mapping[str, int]) -> Inputs:
        batch = collate(features, padding)
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    def _batch(self, inputs: Inputs, turn: Turn, masks: Draws) -> Tensors:
        if turn.passes and not self.alive:
            self._enliven({name: tensor[:FEW] for name, tensor in inputs.items()})
        outputs = self._without_dropout(inputs) if turn.number == 0 or self.trunk.below else {}
        if turn.passes == 0:
            return outputs | _of_no_passes(outputs["logits"])
        passes = torch.stack([self._with_dropout(inputs, masks).softmax(-1) for _ in range(turn.passes)], 1)
        if turn.whole:
            return outputs | {"probabilities": passes}
        return outputs | vars(summarize(passes)) | _passes(len(passes), turn.passes)

    def _without_dropout(self, inputs: Inputs) -> Tensors:
        self.model.eval()
        self.trunk.begin(replay=False)
        layers = self.settings.keeps("layers")
        with answering(self.model):
            outputs = self.model(**inputs, output_hidden_states=layers)
        self._check_finite(outputs.logits)
        tensors = {"logits": outputs.logits.float()}
        if self.settings.keeps("features"):
            tensors["features"] = half(read_by_head(self.seen.pop("features"), inputs["attention_mask"]))
        if layers:
            tensors["layers"] = half(means(outputs.hidden_states, inputs["attention_mask"]))
        return tensors

    def _with_dropout(self, inputs: Inputs, masks: Draws) -> Tensor:
        for module in self.acting:
            module.training = True
        self.trunk.begin(replay=True)
        # For little batches the detour costs more than it saves.
        with masks if inputs["input_ids"].numel() >= FAST else nullcontext():
            logits: Tensor = self.model(**inputs).logits
        return logits.float()

    def _check_finite(self, logits: Tensor) -> None:
        if not bool(logits.isfinite().all()):
            raise SourceError(
                f"{self.name}: gives logits that are NaN or Inf; look for such weights, or train or download it again"
            )

    def _enliven(self, inputs: Inputs) -> None:
        """Makes sure that passes differ, with dropout behind each layer where the model has none to set a rate for."""
        applications = self.meter.applications
        self._without_dropout(inputs)  # what is below the layers with dropout, for passes to begin at
        differs = self._differs(inputs)
        if not differs and self.settings.dropout is not None:
            self.trunk.injected = self.settings.dropout
            differs = self._differs(inputs)
        if not differs:
            raise SourceError(f"{self.name}: {DEAD}")
        self.meter.applications, self.alive = applications, True

    def _differs(self, inputs: Inputs) -> bool:
        with own_random_numbers(self.model.device, 0):
            masks = masks_from(0, self.model.device)
            first, *others = (self._with_dropout(inputs, masks) for _ in range(TRIALS))
        return not all(torch.equal(first, other) for other in others)


def masks_from(seed: int, device: torch.device) -> Draws:
    """Returns what draws masks: faster than torch on a CPU, torch itself elsewhere."""
    return Masks(seed) if device.type == "cpu" else nullcontext()


def _place(found: Tensors, rows: Sequence[int], values: Tensors, count: int) -> None:
    """Puts the values of some rows where they belong."""
    for name, value in values.items():
        if name not in found:
            found[name] = torch.empty(count, *value.shape[1:], dtype=value.dtype)
        found[name][list(rows)] = value.cpu()


def _of_no_passes(logits: Tensor) -> Tensors:
    """Returns what one deterministic pass knows of mean and entropy."""
    summary = vars(summarize(logits.softmax(-1).unsqueeze(1)))
    return {**summary, "spread": torch.zeros(len(logits)), **_passes(len(logits), 0)}


def _passes(rows: int, number: int) -> Tensors:
    return {"passes": torch.full((rows,), number, dtype=torch.int32)}


def half(values: Tensor) -> Tensor:
    """Returns values in half precision, cut at what that holds."""
    return values.float().clamp(-MOST, MOST).half()


def means(states: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Returns the mean over the real tokens of each hidden state: [b, L + 1, d]."""
    weights = mask.unsqueeze(-1).to(states[0].dtype)
    total = weights.sum(1)
    return torch.stack([(state * weights).sum(1) / total for state in states], 1)


@contextmanager
def opened(checkpoint: Checkpoint, settings: Settings) -> Iterator[Scorer]:
    """Yields a checkpoint as a scorer, on the accelerator where there is one."""
    device = accelerator()
    # Fused attention has no dropout on a CPU: torch takes a slower way to it than the plain formula.
    plain: dict[str, Any] = {"attn_implementation": "eager"} if settings.passes and device.type == "cpu" else {}
    # Half precision would round what tells passes apart.
    model = checkpoint.model(dtype=torch.float32, **plain)
    torch.nn.Module.to(model, device)
    with scoring(model, checkpoint.tokenizer(), settings, checkpoint) as scorer:
        yield scorer


@contextmanager
def scoring(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Settings, checkpoint: Checkpoint
) -> Iterator[Scorer]:
    """Yields a model ready to score; modes, rates and layers are as before at the end.

    Raises:
        SourceError: a model that train mode would change, or too few layers.
    """
    name = checkpoint.name
    if problem := unable(model, settings):
        raise SourceError(f"{name}: {problem}")
    encoder = encoder_of(model) or Encoder((model.base_model,), 1)
    below = 0 if settings.last_layers is None else encoder.depth - settings.last_layers
    acting = acting_modules(model, encoder, settings.last_layers)
    meter = Meter(encoder.depth)
    limit = length_limit(tokenizer, model.config, settings.max_length)
    if settings.max_length is not None and limit < settings.max_length:
        logger.warning(
            "%s takes at most %d tokens: max_length %d is cut to that", name, limit, settings.max_length
        )
    trunk = Trunk(encoder, below, meter)
    scorer = Scorer(name, checkpoint.digest, model, tokenizer, settings, trunk, meter, acting, limit)
    with ExitStack() as stack:
        stack.enter_context(modes_kept(model))
        stack.enter_context(injected(acting, settings.dropout))
        stack.enter_context(trunk.watching())
        if settings.keeps("features"):
            stack.enter_context(_watched_head(model, checkpoint, scorer.seen))
        yield scorer


@contextmanager
def _watched_head(model: nn.Module, checkpoint: Checkpoint, seen: Tensors) -> Iterator[None]:
    """Keeps the input of the Linear whose rows are the labels under `features`."""
    names = [name.removesuffix(".weight") for name in checkpoint.label_parameters if name.endswith(".weight")]
    if len(names) != 1:
        raise SourceError(
            f"{checkpoint.name}: found {len(names)} layers whose rows are labels, expected one; keep no features"
        )
    hook: Callable[..., None] = lambda _, arguments: seen.update(features=arguments[0])  # noqa: E731
    handle = model.get_submodule(names[0]).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


LEVELS = 1 << 16
LOWEST = 1 / 256
"""Below this rate, 16 bits are too coarse."""


class Masks(TorchFunctionMode):
    """Inside, `dropout` takes 16 random bits per entry, four entries from one draw of a 64-bit generator.

    Entries are dropped independently with the rate rounded to a multiple of 2⁻¹⁶ (0.1 becomes 0.100006), and the others
    are divided by one minus that rate: ordinary dropout, at about a quarter of its price. What drops in another way
    than by `torch.nn.functional.dropout` is left alone.
    """

    def __init__(self, seed: int) -> None:
        """Begins with the first mask that follows from `seed`."""
        super().__init__()
        self._bits = np.random.SFC64(seed)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.dropout:
            return self.dropout(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Returns what `torch.nn.functional.dropout` does, of another draw."""
        if not training or p == 0:
            return input
        if inplace or not LOWEST <= p < 1 or input.dtype != torch.float32:
            return F.dropout(input, p, training, inplace)
        level = round(p * LEVELS)
        drawn = self._draw(input.numel()).view(input.shape)
        # Signed numbers, for torch compares no unsigned ones.
        mask = (drawn >= level - LEVELS // 2).to(input.dtype)
        return mask.mul_(LEVELS / (LEVELS - level)).mul_(input)

    def _draw(self, count: int) -> Tensor:
        words = self._bits.random_raw(-(-count // 4))
        return torch.from_numpy(words.view(np.int16))[:count]


@dataclass(frozen=True)
class Summary:
    """Of n texts: `mean` [n, C], `expected_entropy` [n], `spread` [n]."""

    mean: Probabilities
    expected_entropy: PerText
    spread: PerText


def entropy(probabilities: Distributions) -> PerDistribution:
    """Returns H(p) = −Σ_c p_c log p_c over the last axis in nats, with 0 log 0 = 0."""
    entropies: PerDistribution = torch.special.entr(probabilities).sum(-1)
    return entropies


def summarize(passes: Passes) -> Summary:
    """Returns the summary of k passes' probabilities p_k per text.

    p̄ = (1/k) Σ_k p_k,  expected entropy = (1/k) Σ_k H(p_k)
    spread = sd_k(Σ_c p_kc log p̄_c) / (log C · √k): by the delta method the standard error of 1 − H(p̄) / log C

    One pass tells nothing of the spread: it is ∞. Where every pass agrees it is 0.
    """
    count = passes.shape[-2]
    mean = passes.mean(-2)
    spread = slopes(passes, mean).var(-1, correction=1).sqrt() / math.sqrt(count) if count > 1 else None
    return Summary(
        mean,
        entropy(passes).mean(-1),
        torch.full(mean.shape[:-1], math.inf, device=mean.device) if spread is None else spread,
    )


def slopes(passes: Passes, mean: Probabilities) -> PerPass:
    """Returns Σ_c p_kc log p̄_c / log C: what each pass adds to the score 1 − H(p̄) / log C, to first order."""
    # A class that no pass gives anything to adds nothing, whatever its logarithm.
    logs = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
    return (passes * logs.unsqueeze(-2)).sum(-1) / math.log(passes.shape[-1])
