"""Merging in forward order, slowly: every statistic from whole passes of the model merged so far, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Batches = Sequence[Mapping[str, Tensor]]


def inputs_of(body: nn.Module, paths: Sequence[str], batches: Batches) -> dict[str, Tensor]:
    """Returns what enters some modules, [tokens, d], from one pass over unpadded texts."""
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}
    handles = [
        body.get_submodule(path).register_forward_pre_hook(
            lambda _, arguments, path=path: seen[path].append(arguments[0])
        )
        for path in paths
    ]
    with torch.no_grad():
        for batch in batches:
            for row in range(len(batch["input_ids"])):
                length = int(batch["attention_mask"][row].sum())
                body(**{name: values[row : row + 1, :length] for name, values in batch.items()})
    for handle in handles:
        handle.remove()
    return {path: torch.cat([x.flatten(0, -2) for x in found]) for path, found in seen.items()}


def regmean_forward(
    body: nn.Module,
    sources: Sequence[Mapping[str, Tensor]],
    groups: Sequence[Sequence[str]],
    batches: Sequence[Batches],
    solve: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor],
) -> None:
    """Replaces the linear weights of `body`, group by group, by what `solve` makes of weights and Gram matrices."""
    for paths in groups:
        grams = []
        for texts in batches:
            x = inputs_of(body, paths[:1], texts)[paths[0]]
            grams.append(x.T @ x / len(x))
        for path in paths:
            weights = [source[f"{path}.weight"].double() for source in sources]
            body.get_submodule(path).weight.data.copy_(solve(weights, grams))


def calibrated(
    weights: Sequence[Tensor],
    merged: Sequence[Tensor],
    own: Sequence[Tensor],
    shares: Sequence[float],
    *,
    ridge: float,
    mixed: float,
) -> Tensor:
    """Returns W [out, in] that minimises Σ c_j ‖X̃_j Wᵀ − T_j W_jᵀ‖² + ε m ‖W − W̄‖², T_j = a X_j + (1 − a) X̃_j."""
    mean = sum(w * s for w, s in zip(weights, shares, strict=True)) / sum(shares)
    size = weights[0].shape[1]
    total, right = torch.zeros(size, size).double(), torch.zeros(size, weights[0].shape[0]).double()
    for w, x, y, share in zip(weights, merged, own, shares, strict=True):
        gram = x.T @ x / len(x)
        c = share / float(gram.norm())
        target = (mixed * y + (1 - mixed) * x) @ w.T
        total, right = total + c * gram, right + c * x.T @ target / len(x)
    m = ridge * float(total.diagonal().mean())
    return torch.linalg.solve(total + m * torch.eye(size).double(), right + m * mean.T).T


def norm_by_least_squares(
    normalised: Sequence[Tensor],
    targets: Sequence[Tensor],
    shares: Sequence[float],
    start: tuple[Tensor, Tensor | None],
    ridge: float,
) -> tuple[Tensor, Tensor | None]:
    """Returns scale and shift of a norm, a channel at a time, by an ordinary least-squares solver."""
    scales, shifts = [], []
    for channel in range(normalised[0].shape[1]):
        rows, wanted = [], []
        spread = 0.0
        for x, y, share in zip(normalised, targets, shares, strict=True):
            factor = (share / sum(shares) / len(x)) ** 0.5
            one = torch.ones(len(x)).double() if start[1] is not None else torch.zeros(len(x)).double()
            rows.append(torch.stack((x[:, channel], one), 1) * factor)
            wanted.append(y[:, channel] * factor)
            spread += float((x[:, channel] * factor).square().sum())
        rows.append(torch.tensor([[(ridge * spread) ** 0.5, 0.0]]).double())
        wanted.append(torch.tensor([(ridge * spread) ** 0.5 * float(start[0][channel])]).double())
        solution: Any = torch.linalg.lstsq(torch.cat(rows), torch.cat(wanted)[:, None], driver="gelsd").solution
        scales.append(float(solution[0]))
        shifts.append(float(solution[1]))
    return torch.tensor(scales).double(), None if start[1] is None else torch.tensor(shifts).double()
