"""One image as an example: a file, the bytes of one, or a picture in memory, opened when it is looked at."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from plait.boundary import reading
from plait.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})


@dataclass(frozen=True, eq=False)
class Picture:
    """An image that is opened when it is looked at: a file, the bytes of one, or a `PIL.Image`."""

    name: str
    source: Any = field(repr=False)

    def open(self) -> Any:
        """Returns it as PIL has it, in RGB.

        Raises:
            DataError: it is no image.
        """
        from PIL import Image, ImageOps

        with reading(self.name, "is not readable as an image", error=DataError, advice="mend or remove it"):
            if isinstance(self.source, Image.Image):
                return self.source.convert("RGB")
            with Image.open(io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source) as image:
                turned = ImageOps.exif_transpose(image)
                return (turned or image).convert("RGB")

    @cached_property
    def digest(self) -> str:
        """Returns a hash of its content."""
        if isinstance(self.source, bytes):
            return xxhash.xxh3_128_hexdigest(self.source)
        if isinstance(self.source, Path):
            with reading(self.name, "is not readable", error=DataError):
                return xxhash.xxh3_128_hexdigest(self.source.read_bytes())
        return xxhash.xxh3_128_hexdigest(f"{self.source.mode} {self.source.size}".encode() + self.source.tobytes())

    def __repr__(self) -> str:
        return f"<image {self.digest}>"

    def __str__(self) -> str:
        return self.name


def picture(value: Any, folder: Path | None = None) -> Picture | None:
    """Returns an image from a cell: a picture, `{"bytes", "path"}` as `datasets` has it, or a file's name; else None.

    Args:
        value: the cell.
        folder: where relative names begin.
    """
    if isinstance(value, Picture):
        return value
    if isinstance(value, Mapping) and {"bytes", "path"} >= value.keys() and value:
        data, path = value.get("bytes"), value.get("path")
        return Picture(str(path or "image"), data) if data else picture(path, folder)
    if isinstance(value, str | Path) and Path(value).suffix.lower() in SUFFIXES:
        path = Path(value).expanduser()
        return Picture(str(value), path if folder is None or path.is_absolute() else folder / path)
    if type(value).__module__.partition(".")[0] == "PIL":
        return Picture(getattr(value, "filename", "") or "image in memory", value)
    return None


def is_image_file(path: Path) -> bool:
    """Says whether a file's name is that of an image."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith((".", "_"))
