"""Folders of images, and the pixels that a model is given of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from plait.boundary import reading
from plait.data.columns import Table
from plait.data.pictures import Picture
from plait.errors import DataError

PIXELS = "pixel_values"


def class_folder(folder: Path, files: Sequence[Path]) -> Table:
    """Returns images that lie in folders named for their classes; without labels where they lie in `folder` itself.

    Raises:
        DataError: some lie in folders, some do not.
    """
    names = [path.relative_to(folder).parts[:-1] for path in files]
    pictures = [Picture(str(path), path) for path in files]
    if not any(names):
        return Table({"image": pictures}, {}, str(folder))
    if loose := [path.name for path, parts in zip(files, names, strict=True) if not parts]:
        raise DataError(f"{folder}: {loose[0]} lies beside the folders of classes; move it into one of them")
    classes = sorted({parts[-1] for parts in names})
    return Table(
        {"image": pictures, "label": [classes.index(parts[-1]) for parts in names]},
        {"label": tuple(classes)},
        str(folder),
    )


class Features(Sequence[dict[str, Any]]):
    """What a model is given of each image; opened and resized when it is asked for, so that no two batches are held."""

    def __init__(self, pictures: Sequence[Picture], processor: Any, labels: Sequence[Any] | None) -> None:
        """Keeps what the images are read by."""
        self._pictures, self._processor, self._labels = pictures, processor, labels

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, row: int) -> dict[str, Any]:  # type: ignore[override]
        one = self._pictures[row]
        image = one.open()
        with reading(one.name, "cannot be prepared for the model", error=DataError):
            pixels = self._processor(images=image, return_tensors="pt")[PIXELS][0]
        return {PIXELS: pixels, **({} if self._labels is None else {"labels": self._labels[row]})}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[row] for row in range(len(self)))


def stacked(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Returns features of images as one batch.

    Raises:
        DataError: the processor leaves images in sizes of their own.
    """
    sizes = {tuple(feature[PIXELS].shape) for feature in features}
    if len(sizes) > 1:
        raise DataError(
            f"images of several sizes {sorted(sizes)[:3]} cannot share a batch: set do_resize and size, or "
            "do_center_crop, in preprocessor_config.json"
        )
    found = {PIXELS: torch.stack([feature[PIXELS] for feature in features])}
    if "labels" in features[0]:
        found["labels"] = torch.tensor([feature["labels"] for feature in features])
    return found
