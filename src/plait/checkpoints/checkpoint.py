"""Checkpoints: opened by reading headers alone; tensors, model and tokenizer come when they are asked for."""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import xxhash
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from plait.boundary import reading
from plait.checkpoints import adapters, parameter_names
from plait.checkpoints.foreign import before_quantization, checkpoint_place, checkpoints_below
from plait.checkpoints.headers import Header, TensorFiles, read_headers, read_json
from plait.checkpoints.lineage import front_of
from plait.checkpoints.processors import open_processor, reads_images, refuse_hidden
from plait.checkpoints.tokenizers import PREPROCESSOR, Opened, has_tokenizer, open_tokenizer
from plait.data.examples import ONE_ANSWER
from plait.data.language import LanguageKind
from plait.encoders.heads import (
    bare_class_name,
    kind_of,
    label_names,
    language_class,
    language_kind,
    model_class,
    problem_of,
)
from plait.errors import SourceError, listed
from plait.hub import TOKENIZER_FILES, VOCABULARIES, locate
from plait.reports.record import origin_from, read_record, refuse_several

logger = logging.getLogger("plait")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A fine-tuned encoder (or a bare one) on disk: what it is, and where each of its parameters lies.

    A language model is a body: its head is that of no task. `head` holds what its `language_class` has beside the body;
    `left_out` names stored tensors that are part of neither. An adapter has a `base_folder`, that of the model which it
    changes. An `assembled` model is not what transformers would load from the folder: its tensors are read one by one.
    One whose rows have been matched with those of others has an `original`, and the `union_tokenizer` of all.
    Where `order_known`, its labels are placeholders in an order that data showed to be the others'.
    """

    artifact: ClassVar = "checkpoint"
    name: str
    origin: str
    folder: Path
    revision: str | None
    config: PretrainedConfig
    architecture: str
    kind: str
    prefix: str
    labels: tuple[str, ...] | None
    problem_type: str | None
    body: Mapping[str, str]
    head: Mapping[str, str]
    headers: Mapping[str, Header]
    model_class: type[PreTrainedModel]
    trust_remote_code: bool = False
    recorded_base: str | None = None
    language_class: type[PreTrainedModel] | None = None
    left_out: tuple[str, ...] = ()
    renamed: bool = False
    base_folder: Path | None = None
    assembled: bool = False
    original: Checkpoint | None = None
    union_tokenizer: Opened | None = None
    order_known: bool = False
    _files: TensorFiles = field(default_factory=TensorFiles, repr=False)
    _hashes: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def carried_as(self) -> str:
        """Returns the class whose whole is in body and head: the bare encoder's where a language head is left out."""
        bare = self.kind == "body" and self.language_class is None
        return bare_class_name(self.config) if bare else self.architecture

    def header(self, stored: str) -> Header:
        """Returns dtype, shape and place of a stored tensor, known since opening."""
        return self.headers[stored]

    def read(self, stored: str) -> Tensor:
        """Returns a stored tensor in its own dtype, mapped from its file where that is possible."""
        return self._files.read(stored, self.headers[stored])

    @cached_property
    def label_parameters(self) -> frozenset[str]:
        """Returns the head parameters whose rows are labels, found by asking the class for one label more."""
        if self.labels is None:
            return frozenset()
        config = copy.deepcopy(self.config)
        config.num_labels = len(self.labels) + 1
        wider = parameter_names.skeleton(self.model_class, config, str(self.folder))
        shapes = {name: tuple(parameter.shape) for name, parameter in wider.named_parameters()}
        return frozenset(
            name for name, stored in self.head.items() if shapes[name] != self.header(stored).shape
        )

    @property
    def tokenizer_folder(self) -> Path:
        """Returns the folder that the tokenizer lies in: that of the base for an adapter saved without one."""
        return self.folder if self.base_folder is None or has_tokenizer(self.folder) else self.base_folder

    @property
    def settings_folder(self) -> Path:
        """Returns the folder that says how a language model generates."""
        return self.base_folder or self.folder

    def note_hash(self, stored: str, digest: str) -> None:
        """Keeps the xxh3-128 hex digest of a stored tensor's bytes, computed by who streamed them."""
        if self.original is not None:
            if self.headers[stored] is self.original.headers[stored]:
                self.original.note_hash(stored, digest)
            return
        derived = self.headers[stored].derived
        self._hashes[stored] = digest if derived is None else _combined(digest, derived.fingerprint)

    @cached_property
    def digest(self) -> str:
        """Returns a hex digest over class, problem type and each parameter's name, dtype, shape, bytes."""
        if self.original is not None:
            return self.original.digest
        total = xxhash.xxh3_128(f"{self.architecture} {self.problem_type}\n".encode())
        start = f"{self.prefix}." if self.prefix else ""
        for name, stored in sorted({**{f"{start}{k}": v for k, v in self.body.items()}, **self.head}.items()):
            header = self.headers[stored]
            total.update(f"{name} {header.dtype} {header.shape} {self._hash(stored)}\n".encode())
        return total.hexdigest()

    @cached_property
    def circumstances(self) -> str:
        """Returns a hex digest of what decides its answers beside its weights: configuration and tokenizer."""
        own = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}
        settings = {k: v for k, v in self.config.to_diff_dict().items() if k not in own}
        total = xxhash.xxh3_128(json.dumps(settings, sort_keys=True, default=str).encode())
        for name in sorted({*TOKENIZER_FILES, *([PREPROCESSOR] if reads_images(self.model_class) else ())}):
            file = self.tokenizer_folder / name
            # Stores of earlier versions know nothing of files that few tokenizers have.
            absent = b"-" if name in {*VOCABULARIES, "tokenizer_config.json"} else b""
            total.update(file.read_bytes() if file.is_file() else absent)
        return total.hexdigest()

    def _hash(self, stored: str) -> str:
        if stored not in self._hashes:
            derived = self.headers[stored].derived
            origin = self.headers[stored] if derived is None else derived.origin
            digest = _digest(self._files.read(stored, origin)) if origin is not None else ""
            self.note_hash(stored, digest)
        return self._hashes[stored]

    def weights(self, *, language: bool = False) -> dict[str, Any]:
        """Returns what `from_pretrained` takes the weights from: the folder, or tensors by the model's names."""
        if not self.assembled:
            return {"pretrained_model_name_or_path": self.folder}
        whole = language or self.kind != "body"
        start = f"{self.prefix}." if whole and self.prefix else ""
        stored = {**{f"{start}{name}": s for name, s in self.body.items()}, **(self.head if whole else {})}
        state = {name: self.read(file) for name, file in stored.items()}
        return {"pretrained_model_name_or_path": None, "state_dict": state}

    @property
    def objective(self) -> LanguageKind | None:
        """Returns what a language model gives the likelihood of: texts, or targets given texts; None for all others."""
        return language_kind(self.language_class) if self.kind == "body" else None

    def model(self, *, language: bool = False, **options: Any) -> PreTrainedModel:
        """Returns the model in memory and in eval mode, with `language` the whole of a language model.

        `options` go to `from_pretrained`.
        """
        cls = self.language_class if language and self.language_class is not None else self.model_class
        with quiet_loading(), reading(self.folder, "the model does not load"):
            loaded = cls.from_pretrained(
                **self.weights(language=cls is not self.model_class), config=self.config,
                trust_remote_code=self.trust_remote_code,
                local_files_only=True, **options,
            )  # fmt: skip
        loaded.config.return_dict = True  # a config may ask for tuples, we ask by name
        loaded.eval()
        return loaded

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the tokenizer saved with the checkpoint, its settings those of its files; or the image processor."""
        if reads_images(self.model_class):
            return open_processor(self.folder, self.name)  # type: ignore[no-any-return]
        return self._tokenizer.as_opened()

    @cached_property
    def _tokenizer(self) -> Opened:
        if self.union_tokenizer is not None:
            return self.union_tokenizer
        trust: dict[str, Any] = {"config": self.config, "trust_remote_code": self.trust_remote_code}
        return Opened.of(open_tokenizer(self.tokenizer_folder, self.name, **trust))


def _digest(tensor: Tensor) -> str:
    return xxhash.xxh3_128(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _combined(digest: str, fingerprint: str) -> str:
    return xxhash.xxh3_128(f"{digest} {fingerprint}".encode()).hexdigest()


class quiet_loading:  # noqa: N801 (a context manager, used like a function)
    """Hides the bars of transformers: loading is part of a stage that reports its own progress.

    Without `reports` also what it says of weights that a class leaves out, such as the head of a language model.
    """

    def __init__(self, *, reports: bool = True) -> None:
        self._reports = reports

    def __enter__(self) -> None:
        self._shown = transformers_logging.is_progress_bar_enabled()
        self._level = transformers_logging.get_verbosity()
        transformers_logging.disable_progress_bar()
        if not self._reports:
            transformers_logging.set_verbosity_error()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self._level)
        if self._shown:
            transformers_logging.enable_progress_bar()


def whole(found: tuple[Any, Mapping[str, Any]], where: Path) -> Any:
    """Returns the model of what `from_pretrained(…, output_loading_info=True)` found.

    Raises:
        SourceError: files lack some of its weights, which transformers has drawn at random.
    """
    model, told = found
    if missing := sorted(told["missing_keys"]):
        raise SourceError(f"{where}: the weights do not fit {type(model).__name__}: lack {listed(missing)}")
    return model


def open_checkpoint(
    origin: str | Path,
    *,
    name: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    labels: Sequence[str] | None = None,
    ask_hub: bool = True,
    base: str | Path | None = None,
) -> Checkpoint:
    """Returns the checkpoint in a local folder or under a Hub id, having read its headers alone.

    Code that comes with a checkpoint runs only when `trust_remote_code` is set. `labels` are the names of the head's
    labels, in its order, instead of those in its configuration. Without `ask_hub` an id is looked up among what was
    downloaded before: for ids that stand in a file, which nobody has typed. `base` is the model that an adapter changes
    where the one that it records is not here.
    """
    wanted = Wanted(origin, name, revision, labels, base)
    place = locate(origin, revision, trust_remote_code, ask_hub=ask_hub)
    return _opened(checkpoint_place(place, name or str(origin)), wanted, trust_remote_code)


@dataclass(frozen=True)
class Wanted:
    """A checkpoint to open: a folder or Hub id, what messages call it, its revision, and names for its labels.

    `base` is the model that an adapter changes where the one that it records is not here.
    """

    origin: str | Path
    name: str | None = None
    revision: str | None = None
    labels: Sequence[str] | None = None
    base: str | Path | None = None


def open_models(wanted: Sequence[Wanted], *, trust_remote_code: bool = False) -> tuple[Checkpoint, ...]:
    """Returns checkpoints in order, each of which is one model.

    Raises:
        RecipeError: merged checkpoints or ensembles, which are several; all of them are named.
        SourceError: one that is missing, corrupt or unsafe.
    """
    places = [locate(one.origin, one.revision, trust_remote_code) for one in wanted]
    named = zip(places, wanted, strict=True)
    folders = [checkpoint_place(place, one.name or str(one.origin)) for place, one in named]
    titles = [str(one.origin) if one.name is None else f"{one.name} ({one.origin})" for one in wanted]
    refuse_several(dict(zip(titles, folders, strict=True)))
    return tuple(_opened(folder, one, trust_remote_code) for folder, one in zip(folders, wanted, strict=True))


def _opened(folder: Path, wanted: Wanted, trust_remote_code: bool) -> Checkpoint:
    """Returns the checkpoint in a folder, having read its headers alone."""
    labels = wanted.labels
    found = _contents(folder, wanted, trust_remote_code)
    config, headers = found.config, found.headers
    architecture = architecture_of(folder, config)
    kind = kind_of(architecture, config, str(folder))
    cls = model_class(architecture, kind, config, folder, trust_remote_code)
    model = parameter_names.skeleton(cls, config, str(folder), stored=len(headers))
    refuse_hidden(model, kind, folder)
    names = parameter_names.match(model, headers, kind, str(folder))
    more: dict[str, Any] = {"head": names.head, "prefix": model.base_model_prefix}
    if kind == "body":
        parameter_names.refuse_lost_head(architecture, config, headers, names, str(folder))
        more = _language(architecture, model, headers, names, folder)
        names = parameter_names.Names(names.body, more["head"], names.wrapper)
    if names.wrapper:
        said = "%s: the name of every tensor begins with %r, of what wrapped the model in training: read without it"
        logger.warning(said, wanted.name or str(wanted.origin), names.wrapper)
    _refuse_integers(folder, names, headers)
    problem = problem_of(config) if kind in ONE_ANSWER else None
    if labels is not None:
        rename_labels(config, labels, label_names(folder, config, kind, problem), wanted.name or str(wanted.origin))
    return Checkpoint(
        name=wanted.name or _name(wanted.origin, folder), origin=str(wanted.origin), folder=folder,
        revision=wanted.revision,
        config=config, architecture=architecture, kind=kind,
        labels=label_names(folder, config, kind, problem), problem_type=problem, body=names.body, **more,
        headers=headers, model_class=cls, trust_remote_code=trust_remote_code,
        recorded_base=found.base or recorded_base(folder), renamed=labels is not None,
        base_folder=found.base_folder, assembled=found.assembled or bool(names.wrapper),
    )  # fmt: skip


@dataclass(frozen=True)
class _Contents:
    """What a folder holds: a configuration and tensors, those of an adapter folded into its base."""

    config: PretrainedConfig
    headers: Mapping[str, Header]
    base: str | None = None
    base_folder: Path | None = None
    assembled: bool = False


def _contents(folder: Path, wanted: Wanted, trust_remote_code: bool) -> _Contents:
    if not adapters.is_adapter(folder):
        return _Contents(read_config(folder, trust_remote_code), read_headers(folder))
    adapter = adapters.read_adapter(folder, wanted.name or str(wanted.origin))
    place, base = adapters.base_folder(adapter, wanted.base, trust_remote_code)
    if adapters.is_adapter(place):
        raise SourceError(f"{adapter.name}: its base {base} is an adapter too: merge that into its own base first")
    config = read_config(place, trust_remote_code)
    config, headers = adapters.fold(adapter, config, read_headers(place), architecture_of(place, config))
    return _Contents(config, headers, base, place, assembled=True)


def _language(
    architecture: str,
    body: PreTrainedModel,
    headers: Mapping[str, Header],
    names: parameter_names.Names,
    folder: Path,
) -> dict[str, Any]:
    """Returns what a body has as a language model: its class where the files hold all of it, its head, and the rest."""
    cls = language_class(architecture, body.config)
    model = body if cls is None else parameter_names.skeleton(cls, body.config, str(folder))
    head = None if cls is None else parameter_names.language_head(model, body, headers, str(folder))
    left_out = parameter_names.left_out(model, headers, {*names.body.values(), *(head or {}).values()})
    prefix = body.base_model_prefix if head is None else parameter_names.prefix_in(model)
    return {"head": head or {}, "language_class": None if head is None else cls, "left_out": left_out, "prefix": prefix}


def _name(origin: str | Path, folder: Path) -> str:
    return folder.resolve().name if Path(origin).expanduser().is_dir() else str(origin).rpartition("/")[2]


def read_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """Returns the configuration of a folder; code that it would load is refused unless trusted."""
    if not (folder / "config.json").is_file():
        hint = checkpoints_below(folder)
        raise SourceError(f"not a checkpoint: no config.json in {folder}{hint}")
    raw = read_json(folder / "config.json")
    if raw.get("auto_map") and not trust_remote_code:
        named = raw["auto_map"]
        targets = named.values() if isinstance(named, dict) else [named]
        code = listed(sorted({str(target) for target in targets}))
        raise SourceError(
            f"{folder}: config.json asks to run code that comes with it ({code}); read that code, then pass "
            "trust_remote_code (--trust-remote-code) if you trust it"
        )
    if not isinstance(raw.get("model_type", ""), str):
        raise SourceError(f"{folder}: model_type in config.json is no text; expected one such as bert")
    if not raw.get("model_type") and not trust_remote_code:
        expected = parameter_names.type_of(raw.get("architectures"))
        raise SourceError(f"{folder}: config.json names no model_type; expected one such as {expected}")
    check_counts(raw, folder)
    with reading(folder, "config.json is not understood"):
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    if quantized := getattr(config, "quantization_config", None):
        raise SourceError(f"{folder}: quantized weights cannot be merged; {before_quantization(quantized)}")
    return config


_REPEATED = re.compile(r"(layers?|groups?|group_num|blocks?|depth|members|num_labels)$")
REPEATS, LABELS, LARGEST = 10_000, 1_000_000, 2**31


def check_counts(raw: Mapping[str, Any], folder: Path) -> None:
    """Raises `SourceError` for numbers in a config that no model has: a configuration lists each layer and label.

    What is built from it is bounded by what the files hold; this keeps the configuration itself small.
    """
    for key, value in raw.items():
        if isinstance(value, Mapping):
            check_counts(value, folder)
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        found = _REPEATED.search(str(key))
        limit = LARGEST if not found else LABELS if found[0] == "num_labels" else REPEATS
        if isinstance(value, int) and abs(value) > limit:
            raise SourceError(f"{folder}: {key} in config.json is {value:,}; expected at most {limit:,}: correct it")


def architecture_of(folder: Path, config: PretrainedConfig) -> str:
    """Returns the class recorded in the config; without a record only the bare encoder is certain."""
    recorded = list(config.architectures or ())
    if not all(isinstance(name, str) for name in recorded):
        raise SourceError(f"{folder}: architectures in config.json are no texts; name the class it was trained as")
    if len(recorded) > 1:
        raise SourceError(
            f"{folder}: config.json names several architectures ({', '.join(recorded)}); keep one"
        )
    return recorded[0] if recorded else bare_class_name(config)


def rename_labels(
    config: PretrainedConfig, labels: Sequence[str], found: Sequence[str] | None, where: str
) -> None:
    """Gives a head's labels, in its order, the names that the user says they have.

    Raises:
        SourceError: the head has no labels, or other than as many, or two would have one name.
    """
    if found is None:
        raise SourceError(f"{where}: labels {', '.join(labels)} are given, but the head tells no labels apart")
    if len(labels) != len(found):
        raise SourceError(
            f"{where}: {len(labels)} labels are given ({', '.join(labels)}), the head has {len(found)} "
            f"({listed(found)})"
        )
    if len(set(labels)) < len(labels) or not all(labels):
        raise SourceError(f"{where}: labels {', '.join(labels)}: expected a name of its own for each")
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: row for row, name in enumerate(labels)}


def _refuse_integers(folder: Path, names: parameter_names.Names, headers: Mapping[str, Header]) -> None:
    odd = [
        f"{stored} is {headers[stored].dtype}"
        for stored in (*names.body.values(), *names.head.values())
        if not headers[stored].dtype.is_floating_point or headers[stored].dtype.itemsize == 1
    ]
    if odd:
        raise SourceError(f"{folder}: quantized or integer weights cannot be merged: {listed(odd)}")




def recorded_base(folder: Path) -> str | None:
    """Returns the base named in `plait.json`, the model card or the config, in this order, else None."""
    return _from_provenance(folder) or _from_card(folder / "README.md") or _from_config(folder)


def _text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = next((value[key] for key in ("origin", "path", "name") if value.get(key)), None)
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else None
    return value if isinstance(value, str) and value.strip() else None


def _from_provenance(folder: Path) -> str | None:
    base = _text(getattr(read_record(folder), "base", None))
    return None if base is None else origin_from(folder, base)


def _from_config(folder: Path) -> str | None:
    """Returns `_name_or_path` of older transformers, unless it is the folder itself."""
    text = _text(read_json(folder / "config.json").get("_name_or_path"))
    return None if text is None or Path(text).resolve() == folder.resolve() else text


def _from_card(card: Path) -> str | None:
    """Returns `base_model` of the YAML block that model cards begin with."""
    return _text(front_of(card).get("base_model"))
