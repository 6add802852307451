"""What other libraries need before they compute an exact diagonal Fisher of a transformers BERT: each patch, shown.

Every function returns a callable (model, batches) -> {parameter: Σ_b gradient²}, gradients summed over tokens and
classes as given by the labels. All of them refuse a BERT as transformers builds it; `patched` lists what each needs.

    python -m venv /tmp/peers && . /tmp/peers/bin/activate
    pip install torch==2.13.0 transformers safetensors xxhash jaxtyping rich scipy opt_einsum einops unfoldNd
    pip install --no-deps opacus==1.6.0 backpack-for-pytorch==1.7.1
    pip install --no-deps git+https://github.com/tfjgeorge/nngeometry@c04b984   # release 0.4 has no Embedding
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = Mapping[str, Tensor]
Run = Callable[[nn.Module, Sequence[Batch]], dict[str, Tensor]]


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros_like(value) for name, value in model.named_parameters()}


def loop(model: nn.Module, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Plain autograd, one example at a time, cut to its own length: what many programs do."""
    totals = zeros(model)
    parameters = dict(model.named_parameters())
    for batch in batches:
        for i, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            one = {k: v[i : i + 1, :length] for k, v in batch.items() if k != "labels"}
            loss = F.cross_entropy(model(**one).logits, batch["labels"][i : i + 1])
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    totals[name].addcmul_(gradient, gradient)
    return totals


def with_positions(batch: Batch) -> dict[str, Tensor]:
    """Patch for Opacus, BackPACK and nngeometry: position ids one row per example.

    BERT looks positions up once for the whole batch; hooks then see a batch of one, and the result is wrong without a
    word (see `error without it` in the results).
    """
    ids = batch["input_ids"]
    return {**batch, "position_ids": torch.arange(ids.shape[1]).expand(ids.shape)}


def vmap_eager(model: nn.Module, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """The same with eager attention: fused attention has no batching rule, and its fallback is a loop."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    totals = vmap(model, batches)
    model.set_attn_implementation(before)
    return totals


def vmap(model: nn.Module, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """torch.func: vmap over grad. Patch: a 4-D mask, for building one from a 2-D mask branches on its values."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(
        parameters: dict[str, Tensor], ids: Tensor, types: Tensor, mask: Tensor, label: Tensor
    ) -> Tensor:
        inputs = {"input_ids": ids[None], "token_type_ids": types[None], "attention_mask": mask[None]}
        logits = torch.func.functional_call(model, (parameters, buffers), (), inputs).logits
        return F.cross_entropy(logits, label[None])

    gradient = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0, 0))
    totals = zeros(model)
    for batch in batches:
        mask = (1.0 - batch["attention_mask"][:, None, None, :].float()) * torch.finfo(torch.float32).min
        every = gradient(parameters, batch["input_ids"], batch["token_type_ids"], mask, batch["labels"])
        for name, value in every.items():
            totals[name] += value.square_().sum(0)
    return totals


def trainable(model: nn.Module) -> nn.Module:
    """Patch for Opacus: it ignores modules in eval mode, so train mode with every dropout at zero."""
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


class Opacus:
    """Opacus 1.6, hooks. Patches: train mode without dropout; strict=False, for position ids are a buffer."""

    def __init__(self, *, positions: bool = True) -> None:
        self.positions = positions
        self.wrapped: Any = None

    def __call__(self, model: nn.Module, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Returns Σ_b gradient²."""
        from opacus import GradSampleModule

        if self.wrapped is None:
            self.wrapped = GradSampleModule(trainable(model), loss_reduction="sum", strict=False)
        totals = zeros(model)
        for batch in batches:
            inputs = with_positions(batch) if self.positions else dict(batch)
            labels = inputs.pop("labels")
            F.cross_entropy(self.wrapped(**inputs).logits, labels, reduction="sum").backward()
            for name, parameter in self.wrapped._module.named_parameters():
                if parameter.grad_sample is not None:
                    totals[name] += parameter.grad_sample.square_().sum(0)
            self.wrapped.zero_grad(set_to_none=True)
        return totals


def without_padding_index(model: nn.Module) -> nn.Module:
    """Patch for BackPACK and nngeometry: they refuse `padding_idx`; padded tokens have no gradient here anyway."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None
    return model


class BackPACK:
    """BackPACK 1.7, SumGradSquared. Patches: no padding index; only Linear and Embedding are extended.

    It has no LayerNorm, so that is frozen and left out; extending whole models fails because it stores results under
    `output`, the name of a child of every BERT layer.
    """

    def __init__(self, *, positions: bool = True) -> None:
        self.positions = positions
        self.extended: Any = None

    def __call__(self, model: nn.Module, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Returns Σ_b gradient²."""
        from backpack import backpack, extend
        from backpack.extensions import SumGradSquared

        if self.extended is None:
            prepared = without_padding_index(model)
            for module in prepared.modules():
                if isinstance(module, nn.LayerNorm):
                    module.requires_grad_(False)
                if isinstance(module, nn.Linear | nn.Embedding):
                    extend(module)
            self.extended = (prepared, extend(nn.CrossEntropyLoss(reduction="sum")))
        subject, loss = self.extended
        totals = zeros(model)
        for batch in batches:
            inputs = with_positions(batch) if self.positions else dict(batch)
            labels = inputs.pop("labels")
            with backpack(SumGradSquared()):
                loss(subject(**inputs).logits, labels).backward()
            for name, parameter in subject.named_parameters():
                if hasattr(parameter, "sum_grad_squared"):
                    totals[name] += parameter.sum_grad_squared
                    del parameter.sum_grad_squared
            subject.zero_grad(set_to_none=True)
        return totals


class NNGeometry:
    """nngeometry (main), PMatDiag. Patches: no padding index; positions."""

    def __init__(self, *, positions: bool = True) -> None:
        self.positions = positions
        self.subject: Any = None

    def __call__(self, model: nn.Module, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Returns Σ_b gradient²."""
        from nngeometry.backend import TorchHooksJacobianBackend
        from nngeometry.layercollection import LayerCollection
        from nngeometry.object.pspace import PMatDiag
        from torch.utils.data import DataLoader, TensorDataset

        if self.subject is None:
            self.subject = without_padding_index(model)
        subject = self.subject

        def loss(ids: Tensor, mask: Tensor, types: Tensor, labels: Tensor) -> Tensor:
            batch: Batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
            inputs = with_positions(batch) if self.positions else dict(batch)
            return F.cross_entropy(subject(**inputs).logits, labels, reduction="none").unsqueeze(1)

        columns = [
            torch.cat([b[name] for b in batches])
            for name in ("input_ids", "attention_mask", "token_type_ids", "labels")
        ]
        loader = DataLoader(TensorDataset(*columns), batch_size=len(batches[0]["labels"]))
        layers = LayerCollection.from_model(subject)
        found = PMatDiag(layers, TorchHooksJacobianBackend(subject, loss), examples=loader).get_diag()
        return self._named(layers, found * len(columns[0]))

    def _named(self, layers: Any, flat: Tensor) -> dict[str, Tensor]:
        found = {}
        modules = {id(module): name for name, module in self.subject.named_modules()}
        for layer_id, module in layers.get_layerid_module_map(self.subject).items():
            start, name = layers.p_pos[layer_id], modules[id(module)]
            for leaf in ("weight", "bias"):
                value = getattr(module, leaf, None)
                if value is not None:
                    found[f"{name}.{leaf}"] = flat[start : start + value.numel()].view(value.shape)
                    start += value.numel()
        return found


PEERS: dict[str, tuple[str, Callable[[], Run]]] = {
    "loop": ("none", lambda: loop),
    "vmap": ("4-D mask", lambda: vmap),
    "vmap, eager attention": ("4-D mask; eager attention", lambda: vmap_eager),
    "opacus": ("train mode with dropout 0; strict=False; position ids per example", Opacus),
    "nngeometry": ("padding_idx removed; position ids per example", NNGeometry),
    "backpack": (
        "padding_idx removed; position ids per example; only Linear and Embedding, no LayerNorm",
        BackPACK,
    ),
}
UNPATCHED: dict[str, Callable[[], Run]] = {
    "opacus": lambda: Opacus(positions=False),
    "nngeometry": lambda: NNGeometry(positions=False),
    "backpack": lambda: BackPACK(positions=False),
}
