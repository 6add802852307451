"""Seeded damage: bytes turned, cut and repeated; JSON, YAML and safetensors headers changed in one place."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 10**6, 10**8, 2**31, 2**63, -(2**70), 10**300, 1e308, -1e-300, 0.5, float("nan"),
    float("inf"), "", " ", "x", "x" * 5000, "\x1b[31mred", "\x00", "a\x00b", "../../../tmp/out", "/etc/passwd",
    "\ud800",
    "nobody/nothing", "2024-02-30", "pipeline", "Trainer", "set_seed", "__name__", "<script>x</script>",
    "|\n# x",
    [], {}, [[]], [None], {"": {}}, ["x"] * 50, {"a": [1, {"b": None}]}, "1e9999", "0x1", "\u202eabc",
)  # fmt: skip
"""What a field may say that no field of ours does."""


def mutate(file: Path, draw: random.Random) -> str:
    """Damages a file in one of the ways that suit it; returns a few words on how."""
    ways: list[Callable[[Path, random.Random], str]] = [bytes_of]
    if file.suffix == ".json":
        ways = [json_of, json_of, json_of, json_of, text_of, bytes_of]
    elif file.suffix == ".safetensors":
        ways = [header_of, header_of, values_of, bytes_of]
    elif file.suffix in (".yaml", ".jsonl", ".tsv", ".csv", ".md"):
        ways = [lines_of, text_of, bytes_of] + ([yaml_of] * 4 if file.suffix == ".yaml" else [])
    way = draw.choice(ways)
    return f"{file.name}: {way(file, draw)}"


def bytes_of(file: Path, draw: random.Random) -> str:
    """Turns bits, cuts, repeats or replaces a stretch."""
    data = bytearray(file.read_bytes())
    at, length = draw.randrange(len(data) + 1), draw.choice([1, 2, 8, 100])
    how = draw.choice(["flip", "cut", "drop", "repeat", "noise", "empty"])
    if how == "flip" and data:
        for _ in range(draw.choice([1, 1, 3, 20])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del data[at:]
    elif how == "drop":
        del data[at : at + length]
    elif how == "repeat":
        data[at:at] = data[at : at + length] * draw.choice([1, 2, 50])
    elif how == "noise":
        data[at : at + length] = draw.randbytes(length)
    else:
        data.clear()
    file.write_bytes(data)
    return f"{how} at {at}"


def text_of(file: Path, draw: random.Random) -> str:
    """Puts something unlikely into a text."""
    text = file.read_text(encoding="utf-8", errors="replace")
    odd = [
        "[" * 3000,
        '{"a":' * 3000,
        "1" * 5000,
        "NaN",
        "\\ud800",
        "\x00",
        "\x1b[2J",
        "﻿",
        ",",
        '"',
        "\r",
        "{",
        "}",
        "&a [*a]",
        "!!python/object:os.system {}",
    ]
    at, what = draw.randrange(len(text) + 1), draw.choice(odd)
    file.write_text(text[:at] + what + text[at:], encoding="utf-8")
    return f"{what[:20]!r} at {at}"


def lines_of(file: Path, draw: random.Random) -> str:
    """Repeats, drops, cuts or swaps lines."""
    lines = file.read_text(encoding="utf-8").split("\n")
    at, how = draw.randrange(len(lines)), draw.choice(["twice", "drop", "half", "only", "swap"])
    if how == "twice":
        lines.insert(at, lines[at])
    elif how == "drop":
        del lines[at]
    elif how == "half":
        lines[at] = lines[at][: len(lines[at]) // 2]
    elif how == "only":
        lines = [lines[0], lines[at][:3]]
    else:
        lines[at], lines[0] = lines[0], lines[at]
    file.write_text("\n".join(lines), encoding="utf-8")
    return f"{how} line {at}"


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        _places(value[key], found)
    return found


def change(content: Any, draw: random.Random) -> str:
    """Changes one place in a document."""
    places = _places(content, [])
    if not places:
        return "nothing"
    # Big lists (vocabularies) must not swallow every draw: half of the time the place is near the top.
    top = [place for place in places if place[0] is content]
    owner, key = draw.choice(top if draw.random() < 0.4 else places)
    how = draw.choice(["set", "set", "set", "set", "drop", "swap", "rename"])
    if how == "drop":
        del owner[key]
    elif how == "swap":
        other, there = draw.choice(places)
        owner[key], other[there] = other[there], owner[key]
    elif how == "rename" and isinstance(owner, dict):
        owner[draw.choice(["x", "", "../up", "\x1b[0m", "a" * 300, "\x00"])] = owner.pop(key)
    else:
        owner[key] = draw.choice(HOSTILE)
        return f"{key} = {str(owner[key])[:30]!r}"
    return f"{how} {key}"


def json_of(file: Path, draw: random.Random) -> str:
    """Changes one place of a JSON document, or gives a key twice."""
    text = file.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except ValueError:
        return bytes_of(file, draw)
    if draw.random() < 0.05 and isinstance(content, dict) and content:
        key = draw.choice(list(content))
        file.write_text(f"{{{json.dumps(key)}: 1, {text.strip()[1:]}")
        return f"{key} twice"
    if draw.random() < 0.05:
        file.write_text(json.dumps(draw.choice(HOSTILE)))
        return "another document"
    said = _changed(content, draw)
    file.write_text(json.dumps(content))
    return said


def _changed(content: Any, draw: random.Random) -> str:
    # A swap may have put a document into itself: draw until it can be written.
    while True:
        fresh = json.loads(json.dumps(content))
        said = change(fresh, draw)
        try:
            json.dumps(fresh)
        except (ValueError, RecursionError):
            continue
        content.clear()
        content.update(fresh) if isinstance(content, dict) else content.extend(fresh)
        return said


def yaml_of(file: Path, draw: random.Random) -> str:
    """Changes one place of a YAML document."""
    import yaml

    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    said = _changed(content, draw)
    file.write_text(
        yaml.safe_dump(content, sort_keys=False, allow_unicode=False), encoding="utf-8", errors="replace"
    )
    return said


def header_of(file: Path, draw: random.Random) -> str:
    """Changes the header of a safetensors file, whose length still fits; its record as well where it has one."""
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    table = json.loads(data[8 : 8 + length])
    record = table.get("__metadata__", {}).get("plait")
    if record is not None and draw.random() < 0.7:
        inner = json.loads(record)
        said = _changed(inner, draw)
        table["__metadata__"]["plait"] = json.dumps(inner)
    else:
        said = _changed(table, draw)
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    file.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    return f"header {said}"


def values_of(file: Path, draw: random.Random) -> str:
    """Writes NaN, Inf or a huge or negative number over some values."""
    data = bytearray(file.read_bytes())
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    value = draw.choice([float("nan"), float("inf"), -float("inf"), 1e38, -1.0])
    for _ in range(draw.choice([1, 1, 50])):
        if len(data) - begin < 8:
            break
        at = begin + 4 * draw.randrange((len(data) - begin) // 4)
        data[at : at + 4] = struct.pack("<f", value)
    file.write_bytes(data)
    return f"values {value}"


def files_of(target: Path) -> list[Path]:
    """Returns what can be mutated of a thing."""
    found = (
        [target]
        if target.is_file()
        else sorted(p for p in target.rglob("*") if p.is_file() and p.suffix != ".txt")
    )
    return [file for file in found if file.suffix != ".md"] or found
