"""Makes transformers' auto classes know our models, without importing transformers.

`AutoModelForSequenceClassification.from_pretrained("ens")` finds a class by the `model_type` in config.json. A class
must be registered for that, and registering imports transformers and torch: seconds that `import plait` must not take
from those who only want `plait --help`. So the registration waits: a finder in `sys.meta_path` sees the auto modules
come in, lets them load as always, and then registers. Where they are loaded already, it registers at once.

This is the one thing that happens on `import plait`. Without it a saved ensemble would open only for those who know
which of our modules to import first.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

CONFIGURATIONS = "transformers.models.auto.configuration_auto"
MODELS = "transformers.models.auto.modeling_auto"
ENSEMBLE = "plait_ensemble"
"""The `model_type` of our ensembles."""


def register_configurations(module: ModuleType) -> None:
    """Tells transformers' table of configurations what an ensemble is."""
    config = _ours("plait.ensembles.configuration", "EnsembleConfig")
    if config is not None:
        module.AutoConfig.register(config.model_type, config, exist_ok=True)


def register_models(module: ModuleType) -> None:
    """Tells the auto classes which of our classes belongs to which task."""
    config = _ours("plait.ensembles.configuration", "EnsembleConfig")
    for task in ("SequenceClassification", "TokenClassification"):
        model = _ours("plait.ensembles.modeling", f"EnsembleFor{task}")
        if model is not None:
            getattr(module, f"AutoModelFor{task}").register(config, model, exist_ok=True)


def _ours(module: str, name: str) -> Any:
    """Returns a class of ours; None where its own module, halfway, asked for transformers: it registers at its end."""
    return getattr(importlib.import_module(module), name, None)


TARGETS: dict[str, Callable[[ModuleType], None]] = {
    CONFIGURATIONS: register_configurations,
    MODELS: register_models,
}


class _Registering(Loader):
    """A module's own loader, followed by our registration."""

    def __init__(self, own: Loader, register: Callable[[ModuleType], None]) -> None:
        self.own, self.register = own, register

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.own.exec_module(module)
        # The module keeps its own loader: whoever looks at it later finds nothing of ours.
        module.__loader__ = self.own
        if module.__spec__ is not None:
            module.__spec__.loader = self.own
        self.register(module)


class _Finder(MetaPathFinder):
    """Finds the auto modules as everybody else does, with our registration behind them."""

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        register = TARGETS.get(fullname)
        if register is None:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Registering(spec.loader, register)
                return spec
        return None


def install() -> None:
    """Registers our classes with transformers as soon as its auto modules are there; once."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    for name, register in TARGETS.items():
        module = sys.modules.get(name)
        if module is not None:
            register(module)
