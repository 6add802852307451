"""BatchEnsemble of a transformers BERT (arXiv:2002.06715): as one writes it by hand, and from torch-uncertainty.

Both replace all linear layers, keep the weights and start with factors of 1, so that they say what the one model says.
The package is optional. Importing it takes Lightning and torchvision, which its layers do not need; their file is
loaded by itself:

    pip install --no-deps --target /tmp/peers torch-uncertainty==0.13.0 einops
    PYTHONPATH=/tmp/peers python benchmarks/ensembles.py
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


class ByHand(nn.Linear):
    """BatchEnsemble as one writes it: (x ∘ r) Wᵀ ∘ s + b, a factor row for each row of the batch, members in turn."""

    def __init__(self, own: nn.Linear, members: int) -> None:
        super().__init__(own.in_features, own.out_features)
        self.weight, self.bias = own.weight, own.bias
        self.r = nn.Parameter(torch.ones(members, own.in_features))
        self.s = nn.Parameter(torch.ones(members, own.out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Returns what each member says of its rows."""
        rows = x.unflatten(0, (len(self.r), -1))
        shape = (len(self.r), *[1] * (rows.dim() - 2), -1)
        out = (rows * self.r.view(shape)) @ self.weight.T * self.s.view(shape) + self.bias
        return out.flatten(0, 1)


class Flat(nn.Module):
    """Patch for torch-uncertainty's layer: it takes rows without tokens, so that tokens become rows of their member."""

    def __init__(self, layer: Any, own: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        with torch.no_grad():
            layer.linear.weight.copy_(own.weight)
            layer.bias.copy_(own.bias.expand_as(layer.bias))
            layer.r_group.fill_(1)
            layer.s_group.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns what each member says of its rows."""
        found: Tensor = self.layer(x.flatten(0, -2))
        return found.unflatten(0, x.shape[:-1])


def batch_linear() -> ModuleType | None:
    """Returns the file with torch-uncertainty's BatchLinear, without importing the package; None where it is absent."""
    package = importlib.util.find_spec("torch_uncertainty")
    if package is None or package.submodule_search_locations is None:
        return None
    file = Path(package.submodule_search_locations[0]) / "layers" / "batch_ensemble.py"
    spec = importlib.util.spec_from_file_location("batch_ensemble_layers", file)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def version() -> str:
    """Returns the release of torch-uncertainty."""
    try:
        return importlib.metadata.version("torch-uncertainty")
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def replaced(own: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """Returns a copy whose linear layers are made anew."""
    model = copy.deepcopy(own)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            model.set_submodule(name, make(module))
    return model.eval()


def together(model: nn.Module, batch: Mapping[str, Tensor], members: int) -> Tensor:
    """Returns the mean logits of a BatchEnsemble: the batch once for every member."""
    inputs = {name: tensor.repeat(members, 1) for name, tensor in batch.items()}
    logits: Tensor = model(**inputs).logits
    return logits.unflatten(0, (members, -1)).mean(0)
