"""Statistics and perplexity of language models as their definitions say: float64, one unpadded example at a time.

Never imports plait. A causal model predicts each token from those before it, a model of targets (T5) each token of its
labels from the text and the tokens before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Example = Mapping[str, Tensor]

HEADS = {  # inputs of the attention output projections, own before crossing, bottom to top
    "gpt2": ["h.{}.attn.c_proj"],
    "t5": ["encoder.block.{}.layer.0.SelfAttention.o", "decoder.block.{}.layer.0.SelfAttention.o",
           "decoder.block.{}.layer.1.EncDecAttention.o"],
}  # fmt: skip
NEURONS = {
    "gpt2": ["h.{}.mlp.c_proj"],
    "t5": ["encoder.block.{}.layer.1.DenseReluDense.wo", "decoder.block.{}.layer.2.DenseReluDense.wo"],
}
VALUES = ["layers.{}.self_attn.v_proj"]


def body(model: nn.Module) -> nn.Module:
    """Returns the model without its head."""
    return getattr(model, model.base_model_prefix, model)


def logits(model: nn.Module, example: Example) -> tuple[Tensor, Tensor]:
    """Returns the logits, and the labels in their places."""
    labels = example["labels"][0]
    if model.config.is_encoder_decoder:
        return model(input_ids=example["input_ids"], labels=example["labels"]).logits[0], labels
    return model(input_ids=example["input_ids"]).logits[0, :-1], labels[1:]


def nll(model: nn.Module, example: Example) -> Tensor:
    """Returns the negative log-likelihood of one example, summed over its tokens."""
    found, labels = logits(model, example)
    return F.cross_entropy(found, labels, reduction="sum")


def squares(model: nn.Module, some: Sequence[Example], by: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the Fisher of the data's tokens by any tensors that the outputs depend on: squared, then averaged."""
    totals = {name: torch.zeros_like(value) for name, value in by.items()}
    for example in some:
        gradients = torch.autograd.grad(nll(model, example), list(by.values()), allow_unused=True)
        for name, gradient in zip(by, gradients, strict=True):
            if gradient is not None:
                totals[name] += gradient.detach().square() / len(some)
    return totals


def expected(model: nn.Module, some: Sequence[Example], by: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the same in expectation over the model's own next tokens, each given the data's tokens before it."""
    totals = {name: torch.zeros_like(value) for name, value in by.items()}
    for example in some:
        found, _ = logits(model, example)
        for row in found.log_softmax(-1):
            for value in row:
                gradients = torch.autograd.grad(value, list(by.values()), retain_graph=True, allow_unused=True)
                for name, gradient in zip(by, gradients, strict=True):
                    if gradient is not None:
                        totals[name] += float(value.detach().exp()) * gradient.square() / len(some)
    return totals


def diagonal(model: nn.Module, some: Sequence[Example]) -> dict[str, Tensor]:
    """Returns the Fisher information of every parameter, by its full name; shared ones have one entry."""
    return squares(model, some, dict(model.named_parameters()))


def places(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Returns the modules of all layers, pattern by pattern."""
    inside, found = body(model), []
    for pattern in patterns:
        stack = inside.get_submodule(pattern.partition(".{}")[0])
        found += [inside.get_submodule(pattern.format(layer)) for layer in range(len(list(stack)))]
    return found


def masked(modules: Sequence[nn.Module], nodes: int | None, *, outputs: bool = False) -> tuple[list[Tensor], list[Any]]:
    """Returns masks of ones on what enters (or leaves) modules, and the hooks that multiply them in."""
    masks, hooks = [], []
    for module in modules:
        wide = module.weight.shape[0 if isinstance(module, Conv1D) or outputs else 1]
        mask = torch.ones(nodes or wide, dtype=torch.float64, requires_grad=True)
        masks.append(mask)

        def spread(x: Tensor, mask: Tensor = mask) -> Tensor:
            return x * mask.repeat_interleave(x.shape[-1] // len(mask))

        if outputs:
            hooks.append(module.register_forward_hook(lambda _, __, y, spread=spread: spread(y)))
        else:
            hooks.append(module.register_forward_pre_hook(lambda _, x, spread=spread: (spread(x[0]), *x[1:])))
    return masks, hooks


def mask_nodes(model: nn.Module, some: Sequence[Example], *, exact: bool = False) -> dict[str, Tensor]:
    """Returns the Fisher information of masks on heads, neurons, and on the values that grouped heads share."""
    family, config = model.config.model_type, model.config
    groups = getattr(config, "num_key_value_heads", config.num_attention_heads)
    kinds: dict[str, tuple[list[nn.Module], int | None, bool]] = {
        "heads": (places(model, HEADS.get(family, ["layers.{}.self_attn.o_proj"])), config.num_attention_heads, False),
        "neurons": (places(model, NEURONS.get(family, ["layers.{}.mlp.down_proj"])), None, False),
    }
    if groups != config.num_attention_heads:
        kinds["groups"] = (places(model, VALUES), groups, True)
    found = {}
    for kind, (modules, nodes, outputs) in kinds.items():
        masks, hooks = masked(modules, nodes, outputs=outputs)
        by = {str(number): mask for number, mask in enumerate(masks)}
        found[kind] = torch.stack(list((expected if exact else squares)(model, some, by).values()))
        for hook in hooks:
            hook.remove()
    return found


def gram(model: nn.Module, some: Sequence[Example]) -> dict[str, Tensor]:
    """Returns XᵀX / rows of what enters each linear layer whose weight no other module uses, by the weight's name."""
    names = {id(value): name for name, value in model.named_parameters()}
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    def add(name: str, inputs: Tensor) -> None:
        for row in inputs.detach().reshape(-1, inputs.shape[-1]):
            sums[name] = sums.get(name, torch.zeros(())) + torch.outer(row, row)
            rows[name] = rows.get(name, 0) + 1

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=f"{name}.weight": add(name, inputs[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and names.get(id(module.weight)) == f"{name}.weight"
    ]
    for example in some:
        given = {"input_ids": example["input_ids"]}
        model(**given, **({"labels": example["labels"]} if model.config.is_encoder_decoder else {}))
    for hook in hooks:
        hook.remove()
    return {name: total / rows[name] for name, total in sums.items()}


def document(model: nn.Module, ids: Sequence[int], width: int, stride: int) -> tuple[float, int]:
    """Returns the negative log-likelihood of all tokens but the first, and their number, window by window."""
    total, count, done = 0.0, 0, 1
    for begin in range(0, len(ids), stride):
        end = min(begin + width, len(ids))
        window = torch.tensor([list(ids[begin:end])])
        with torch.no_grad():
            logs = model(input_ids=window).logits[0].double().log_softmax(-1)
        for place in range(done, end):
            total -= float(logs[place - begin - 1, ids[place]])
            count += 1
        done = end
        if end == len(ids):
            break
    return total, count


def perplexity(found: Sequence[tuple[float, int]]) -> float:
    """Returns exp of the mean negative log-likelihood per token over all documents."""
    return math.exp(sum(value for value, _ in found) / sum(count for _, count in found))
