"""A merged checkpoint: one encoder, a head per task; each task is an ordinary transformers model sharing the encoder.

On disk: `config.json` and `model.safetensors` are an ordinary checkpoint of the encoder (`AutoModel.from_pretrained`
reads it); `tasks/<name>/` holds a task's config, its head and, where the family has one, its pooler, see `folders`;
`plait.json` says what it was made of.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from plait.boundary import reading
from plait.checkpoints import parameter_names
from plait.checkpoints.checkpoint import architecture_of, quiet_loading, read_config, whole
from plait.checkpoints.embedders import embedder
from plait.checkpoints.headers import read_headers, read_safetensors_header
from plait.checkpoints.processors import open_processor, reads_images
from plait.checkpoints.tokenizers import has_tokenizer, open_tokenizer
from plait.data.language import LanguageKind
from plait.encoders.embedding import Embedder
from plait.encoders.heads import class_for, kind_of, language_class, language_kind, model_class
from plait.errors import RecipeError, SourceError, did_you_mean, listed
from plait.evaluation.notebook import html, shortened
from plait.merging.folders import TASKS, head_file, language_model, names_in, tokenizer_place, weight_files
from plait.reports.record import Manifest, Task, read_manifest

logger = logging.getLogger("plait")


class Replay(nn.Module):
    """Stands in for the encoder and returns an output that was computed before."""

    def __init__(self, config: Any, output: Any) -> None:
        """Keeps the output, and the config, which some heads ask their encoder for."""
        super().__init__()
        self.config = config
        self.output = output

    def forward(self, *_: Any, **__: Any) -> Any:
        """Returns the stored output."""
        return self.output


class Merged:
    """A merged checkpoint; weights are read when first used."""

    artifact: ClassVar = "merged"

    def __init__(self, folder: str | Path) -> None:
        """Opens the folder's manifest.

        Raises:
            SourceError: not a merged checkpoint.
        """
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(folder)
        self._models: dict[str, PreTrainedModel] = {}
        self._tokenizers: dict[Path, Any] = {}

    def __repr__(self) -> str:
        return f"Merged({str(self.folder)!r}, tasks={list(self.tasks)}, method={self.method!r})"

    def _repr_html_(self) -> str:
        scored = self.manifest.scores.get("tasks", {})
        rows = [
            {
                "task": name,
                "head": about.architecture,
                "labels": shortened(about.labels or ()),
                "sources": ", ".join(about.sources),
                "score": f"{found['primary']} {found['metrics'][found['primary']]:.3f}"
                if (found := scored.get(name))
                else "–",
            }
            for name, about in self.manifest.tasks.items()
        ]
        return html("Merged checkpoint", {"folder": self.folder, "method": self.method}, rows)

    @property
    def method(self) -> str:
        """Returns the rule that merged it."""
        return str(self.manifest.recipe.get("method", {}).get("name", "average"))

    @property
    def path(self) -> Path:
        """Returns the folder it lies in."""
        return self.folder

    @property
    def tasks(self) -> tuple[str, ...]:
        """Returns the names of its tasks, in the order of the recipe."""
        return tuple(self.manifest.tasks)

    @cached_property
    def language(self) -> LanguageKind | None:
        """Returns what a merged language model gives the likelihood of; None for merges of encoders."""
        kinds = {
            language_kind(language_class(about.architecture, self.config)) if about.kind == "body" else None
            for about in self.manifest.tasks.values()
        }
        return kinds.pop() if len(kinds) == 1 else None

    @cached_property
    def config(self) -> PretrainedConfig:
        """Returns the configuration of the shared encoder."""
        return read_config(self.folder)

    @cached_property
    def tokenizer(self) -> Any:
        """Returns the tokenizer that its tasks share, but for those with one of their own: see `tokenizer_of`.

        Raises:
            SourceError: the sources had none.
        """
        if self.reads_images:
            return open_processor(self.folder, str(self.folder))
        if not has_tokenizer(self.folder):
            raise SourceError(
                f"{self.folder} has no tokenizer, because none of its sources had one: save one there"
            )
        return open_tokenizer(self.folder, str(self.folder), config=self.config)

    def tokenizer_of(self, task: str) -> Any:
        """Returns the tokenizer of one task: its own where it puts a space before the first word and others do not.

        Raises:
            RecipeError: no such task (did you mean).
            SourceError: the sources had none.
        """
        place = tokenizer_place(self.folder, self.about(task).name)
        if place == self.folder:
            return self.tokenizer
        if place not in self._tokenizers:
            self._tokenizers[place] = open_tokenizer(place, str(place))
        return self._tokenizers[place]

    @cached_property
    def encoder(self) -> PreTrainedModel:
        """Returns the shared encoder, in evaluation mode."""
        with torch.inference_mode(False):
            return load_encoder(self.folder, self.config)

    def about(self, task: str) -> Task:
        """Returns what is recorded of one task.

        Raises:
            RecipeError: no such task (did you mean).
        """
        if task not in self.manifest.tasks:
            raise RecipeError(f"{self.folder} has no task {task!r}{did_you_mean(task, self.tasks)}")
        return self.manifest.tasks[task]

    @property
    def embeds(self) -> bool:
        """Says whether it is an embedding model: all its tasks are the bare encoder of texts."""
        kinds = {about.kind for about in self.manifest.tasks.values()}
        if kinds != {"body"} or self.reads_images:
            return False
        return language_class(architecture_of(self.folder, self.config), self.config) is None

    @cached_property
    def reads_images(self) -> bool:
        """Says whether it takes images in place of texts."""
        return reads_images(class_for("body", self.config))

    @cached_property
    def embedder(self) -> Embedder:
        """Returns the encoder with its pooling and what stands behind it, see `checkpoints.embedders`."""
        with torch.inference_mode(False):
            return embedder(self.folder, self.encoder, self.tokenizer, str(self.folder))

    def task(self, name: str) -> PreTrainedModel:
        """Returns one task as an ordinary transformers model whose encoder is shared in memory with the others.

        Raises:
            RecipeError: no such task (did you mean).
        """
        about = self.about(name)
        if name not in self._models:
            # A prediction may be what asks first; tensors made in its mode could never be trained.
            with torch.inference_mode(False):
                if about.kind == "body":
                    self._models[name] = language_model(self.folder, about, self.encoder) or self.encoder
                else:
                    self._models[name] = assemble(self.folder, about, self.encoder)
        return self._models[name]

    def replayed(self, output: Any) -> dict[str, PreTrainedModel]:
        """Returns every task's head on an encoder output computed before.

        These are shallow copies: the models that `task` hands out are not touched, so other threads can use them.
        """
        models = {name: self.task(name) for name in self.tasks if self.about(name).kind != "body"}
        return {
            name: on_encoder(model, Replay(self.encoder.config, pooled(model.base_model, self.encoder, output)))
            for name, model in models.items()
        }

    def predict(
        self,
        texts: str | Sequence[Any],
        *,
        task: str | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        unanswerable: bool = False,
    ) -> Any:
        """Returns predictions for texts (or pairs of texts), in their order.

        Args:
            texts: one text, a list of texts, or a list of `(text, text_pair)`.
            task: one task; None computes all tasks from one encoder pass over the texts.
            batch_size: texts at a time.
            max_length: tokens a text is cut at; default what the model can take. The context of a question is read
                to its end, in windows of this length.
            unanswerable: whether a question may have no answer; then it is empty where no span beats that, as in
                SQuAD 2.

        Returns:
            With `task`, a list with one prediction a text; without, such a list per task name. A prediction is
            `{"label", "score", "scores"}` for one label, `{"labels", "scores"}` for several, `{"value"}` for
            regression, a list of `{"word", "label", "score"}` for tokens, `{"answer", "start", "end", "score"}` for
            questions. An embedding model gives an array [texts, dimensions] in place of the list.

        Raises:
            RecipeError: no such task.
            DataError: no text, or something that is not a text.
        """
        from plait.merging.predictions import predict

        return predict(
            self,
            texts,
            task=task,
            batch_size=batch_size,
            max_length=max_length,
            unanswerable=unanswerable,
        )


def on_encoder(model: PreTrainedModel, encoder: nn.Module) -> PreTrainedModel:
    """Returns a shallow copy of a model with another encoder in its place."""
    copied = copy.copy(model)
    copied._modules = {**model._modules, model.base_model_prefix: encoder}
    return copied


def pooled(body: nn.Module, encoder: nn.Module | None, output: Any) -> Any:
    """Returns an encoder's output with what a task's own pooler makes of it; as it is where the task has none."""
    pooler = getattr(body, "pooler", None)
    if pooler is None or pooler is getattr(encoder, "pooler", None):
        return output
    states = output.last_hidden_state
    pooler.to(states.device)
    bare = isinstance(pooler, nn.Linear)  # ALBERT: a layer alone, its activation beside it
    found = body.pooler_activation(pooler(states[:, 0])) if bare else pooler(states)  # type: ignore[operator]
    return type(output)(**{**output, "pooler_output": found})


def load_encoder(folder: Path, config: PretrainedConfig) -> PreTrainedModel:
    """Returns the body of a merged checkpoint; a pooler that no source had is left out, never made up."""
    stored = read_headers(folder)
    kind_of(architecture_of(folder, config), config, str(folder))  # refuses what is no model
    cls: Any = model_class("", "body", config, folder, False)
    # Names at the top may be those of a model with a head: transformers compares the shapes.
    parameter_names.check_size(cls, config, stored, str(folder), shapes=False)
    wanted = parameter_names.skeleton(cls, config, str(folder), stored=len(stored)).state_dict().keys()
    poolers = ("pooler.", f"{cls.base_model_prefix}.pooler.")
    poolerless = any(n.startswith("pooler.") for n in wanted) and not any(n.startswith(poolers) for n in stored)
    options: dict[str, Any] = {"add_pooling_layer": False} if poolerless else {}
    # The dtype that was written, whatever the library's default is.
    told = {
        "config": config, "dtype": "auto", "output_loading_info": True, "local_files_only": True,
        "trust_remote_code": False,
    }  # fmt: skip
    with quiet_loading(reports=False), reading(folder, "the encoder does not load", advice="merge again"):
        found = cls.from_pretrained(folder, **told, **options)
    model: PreTrainedModel = whole(found, folder)
    model.config.return_dict = True
    model.eval()
    return model


def stored_names(folder: Path) -> frozenset[str]:
    """Returns the parameter names in the safetensors files at the top of a folder, from headers alone."""
    return frozenset(name for file in weight_files(folder) for name in names_in(file))


def assemble(folder: Path, about: Task, encoder: PreTrainedModel) -> PreTrainedModel:
    """Returns a task's model: its head and pooler read from disk around an encoder that is not copied.

    Raises:
        SourceError: the head's file is missing, damaged or incomplete.
    """
    place = folder / TASKS / about.name
    file = head_file(folder, about.name)
    if not file.is_file():
        raise SourceError(f"{file} is missing: the merged checkpoint is incomplete, merge again")
    config = read_config(place)
    cls = class_of(place, config, about.architecture, about.kind)
    headers = read_safetensors_header(file)
    model = parameter_names.skeleton(cls, config, str(place), stored=len(headers) + len(encoder.state_dict()))
    check_task(place, about, model, encoder)
    with reading(file, "the head does not fit", advice="merge again"):
        with safe_open(file, "pt") as handle:
            own = {name: handle.get_tensor(name).clone() for name in headers}
        prefix = f"{model.base_model_prefix}."
        kept = {name.removeprefix(prefix).partition(".")[0] for name in own if name.startswith(prefix)}
        setattr(model, model.base_model_prefix, with_modules(encoder, model.base_model, kept))
        model.load_state_dict(own, strict=False, assign=True)
    everything = chain(model.named_parameters(), model.named_buffers())
    if odd := [name for name, tensor in own.items() if not bool(tensor.isfinite().all())]:
        raise SourceError(f"{file}: {', '.join(odd)} contains NaN or Inf: the head is damaged, merge again")
    missing = [name for name, tensor in everything if tensor.is_meta]
    if missing:
        raise SourceError(
            f"{file} lacks {', '.join(missing)}: the merged checkpoint is incomplete, merge again"
        )
    model.config.return_dict = True
    model.eval()
    return model


def class_of(
    place: Path, config: PretrainedConfig, architecture: str, kind: str | None = None
) -> type[PreTrainedModel]:
    """Returns the model class that a name in a file stands for: one of transformers' own for this type and head.

    The name is compared, never looked up.

    Raises:
        SourceError: it is no class of a model, or of another head than `kind`.
    """
    found = kind_of(architecture, config, str(place))
    if kind is not None and kind != found:
        raise SourceError(f"{place}: {architecture} is a {found.replace('_', ' ')} model, its record says {kind}")
    return model_class(architecture, found, config, place, False)


def check_task(place: Path, about: Task, model: PreTrainedModel, encoder: PreTrainedModel) -> None:
    """Raises `SourceError` where a task's config is not that of its record, or is of another encoder."""
    rows = int(model.config.num_labels or 0)
    if about.labels is not None and len(about.labels) != rows:
        raise SourceError(f"{place}: config.json has {rows} labels, plait.json {len(about.labels)}; merge again")
    there = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    other = [
        f"{name} is {list(tensor.shape)}, the encoder's is {list(there[name])}"
        for name, tensor in model.base_model.state_dict().items()
        if name in there and there[name] != tuple(tensor.shape)
    ]
    if other:
        raise SourceError(f"{place}: config.json is of another encoder: {listed(other, 5)}; merge again")


def with_modules(encoder: PreTrainedModel, skeleton: nn.Module, names: Collection[str]) -> PreTrainedModel:
    """Returns a shallow copy of an encoder with the named modules of a skeleton; itself where none are named."""
    if not names:
        return encoder
    copied = copy.copy(encoder)
    # A skeleton also brings what the encoder was loaded without: the activation beside ALBERT's pooler.
    fresh = {
        name: module
        for name, module in skeleton._modules.items()
        if name in names or encoder._modules.get(name) is None
    }
    copied._modules = {**encoder._modules, **fresh}
    return copied


def plain_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Returns a task's parameters under the names of its own class: a pooler that only other tasks use is dropped."""
    with torch.device("meta"):
        own = type(model)(model.config).state_dict().keys()
    state = model.state_dict()
    return {name: state[name].contiguous() for name in own if name in state}
