"""Batches as the estimators see them: inputs apart from labels, real tokens known, one seed per example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

from plait.data.images import PIXELS
from plait.encoders.embedding import PAIR
from plait.errors import DataError
from plait.statistics.shapes import Mask

TARGETS = ("labels", "start_positions", "end_positions")
DECODER = "decoder_"
"""What begins the name of an input with tokens of its own, those of a second stack."""


@dataclass(frozen=True)
class Batch:
    """A padded batch: `mask` marks real tokens, `seeds` fixes what is drawn for each example."""

    inputs: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    mask: Mask
    seeds: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many examples there are."""
        return self.mask.shape[0]

    @property
    def width(self) -> int:
        """How many tokens each example has, padding included."""
        return self.mask.shape[1]

    @property
    def decoded(self) -> Mask:
        """Returns which tokens of the second stack are real; those of the first where there is none."""
        own = self.inputs.get(f"{DECODER}attention_mask")
        return self.mask if own is None else own.bool()

    @property
    def whole(self) -> bool:
        """Whether examples have no padding, whatever the mask's width: images."""
        return PIXELS in self.inputs

    def lengths(self) -> list[int]:
        """Returns per example the position after its last real token, at least 1."""
        positions = torch.arange(1, self.width + 1, device=self.mask.device)
        return (self.mask * positions).amax(1).clamp(min=1).tolist()

    def examples(self) -> Iterator[Batch]:
        """Yields the examples one by one, without the padding behind them."""
        for number, length in enumerate(self.lengths()):
            yield Batch(
                {name: self._part(name, value, number, length) for name, value in self.inputs.items()},
                {name: value[number : number + 1] for name, value in self.targets.items()},
                self.mask[number : number + 1, :length],
                self.seeds[number : number + 1],
            )

    def _part(self, name: str, value: Tensor, number: int, length: int) -> Tensor:
        if not value.dim() or value.shape[0] != self.count:
            return value
        row = value[number : number + 1]
        of_tokens = row.dim() > 1 and value.shape[:2] == self.mask.shape and not name.startswith(DECODER)
        return row[:, :length] if of_tokens else row

    def apart(self) -> Batch:
        """Returns the same with another width of the second stack, if it has one, so that shapes tell the two."""
        if f"{DECODER}attention_mask" not in self.inputs or self.decoded.shape != self.mask.shape:
            return self
        wider = {
            name: torch.nn.functional.pad(value, (0, 1)) if name.startswith(DECODER) else value
            for name, value in self.inputs.items()
        }
        return Batch(wider, self.targets, self.mask, self.seeds)

    def copies(self, times: int, width: int) -> Batch:
        """Returns the first example, cut to `width` tokens, `times` over; the labels are left out."""
        first = next(self.examples())
        tokens = first.mask[:, :width].expand(times, -1)
        inputs = {
            name: value.expand(times, -1)
            if name.startswith(DECODER)
            else value.expand(times, *value.shape[1:])
            if self.whole and name == PIXELS
            else value[:, :width].expand(times, -1)
            if value.shape == first.mask.shape
            else value
            for name, value in first.inputs.items()
        }
        return Batch(inputs, {}, tokens, first.seeds * times)


def read_batches(batches: Iterable[Mapping[str, Tensor]], device: torch.device, seed: int) -> Iterator[Batch]:
    """Yields the batches on the device of the model, leaving the originals as they are.

    An example's seed comes from its own tokens and from how many equal ones came before, so that what is drawn for it
    depends neither on its batch nor on its place in the data.
    """
    seen: Counter[bytes] = Counter()
    for given in batches:
        values = {
            name: value.detach().to(device) for name, value in given.items() if isinstance(value, Tensor)
        }
        if PIXELS in values:
            yield _of_images(values, seed, seen)
            continue
        if "input_ids" not in values:
            raise DataError(f"a batch holds {', '.join(sorted(given)) or 'nothing'}; expected input_ids")
        targets = {name: values.pop(name) for name in TARGETS if name in values}
        mask = values.get("attention_mask", torch.ones_like(values["input_ids"])).bool()
        ids, counted = values["input_ids"], mask
        if f"{PAIR}input_ids" in values:  # two texts read apart, in one width: tokens of either are real
            second = values[f"{PAIR}attention_mask"].bool()
            ids, counted = torch.cat((ids, values[f"{PAIR}input_ids"]), 1), torch.cat((mask, second), 1)
            mask = mask | second
        yield Batch(values, targets, mask, tuple(_seeds(ids, counted, seed, seen)))


def _of_images(values: dict[str, Tensor], seed: int, seen: Counter[bytes]) -> Batch:
    """Returns a batch of images, which have one size: what the mask marks is the image itself."""
    targets = {name: values.pop(name) for name in TARGETS if name in values}
    pixels = values[PIXELS].flatten(1)
    every = torch.ones_like(pixels, dtype=torch.bool)
    return Batch(values, targets, every[:, :1], tuple(_seeds(pixels, every, seed, seen)))


def _seeds(ids: Tensor, mask: Tensor, seed: int, seen: Counter[bytes]) -> Iterator[int]:
    for row, real in zip(ids.cpu(), mask.cpu(), strict=True):
        content = row[real].numpy().tobytes()
        key = xxhash.xxh3_128_digest(content)
        # 63 bits: torch generators take signed seeds.
        yield xxhash.xxh3_64_intdigest(key + f"/{seen[key]}/{seed}".encode()) >> 1
        seen[key] += 1
