"""Jobs that are killed at one of the things they do to files; run as a program, for which nothing has trained before.

    python -m tests.hardening.killing FOLDER

waits for lines on standard input: `JOB N [resume] [overwrite] [room=BYTES]` does a job in a child that dies at its N-th
step, and is answered with the child's exit code and the steps it took.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLED, REFUSED = 9, 2
STEPS = frozenset({"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"})
"""What is done to files beside opening them to be written, as Python's audit events name it."""


def prepare(folder: Path) -> None:
    """Makes two classifiers of one base, the base, and data."""
    from tests.models import save, texts, tiny

    os.environ["PLAIT_CACHE"] = str(folder / "cache")
    for number, names in enumerate((("bad", "good"), ("dull", "bright")), 1):
        model = tiny("bert", "sequence", seed=number, labels=2)
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: at for at, name in enumerate(names)}
        save(model, folder / f"source{number}")
    save(tiny("bert", "body"), folder / "base")
    told = [{"text": text, "label": ("bad", "good")[len(text) % 2]} for text in texts(24)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")


def merge(folder: Path, out: Path, **how: Any) -> None:
    import plait

    sources = {"a": folder / "source1", "b": folder / "source2"}
    plait.merge(sources, out=out, method="average", **how)


def refine(folder: Path, out: Path, **how: Any) -> None:
    import plait

    sources = {"a": folder / "source1", "b": folder / "source2"}
    data = {name: {"text": [row["text"] for row in rows(folder)]} for name in sources}
    plait.merge(sources, out=out, data=data, method="average", refine=2, refine_texts=8, refine_batch_size=8, **how)


def amalgamate(folder: Path, out: Path, **how: Any) -> None:
    import plait

    teachers = {"a": folder / "source1", "b": folder / "source2"}
    texts = [row["text"] for row in rows(folder)]
    plait.amalgamate(
        teachers, texts=texts, student=folder / "base", out=out, passes=2, epochs=2, max_length=16, **how
    )


def ensemble(folder: Path, out: Path, **how: Any) -> None:
    import plait

    plait.ensemble(
        folder / "base", data=folder / "train.jsonl", out=out, method="separate", members=2, epochs=2, max_length=16,
        batch_size=8, held_back=0.2, **how,
    )  # fmt: skip


def distilled(folder: Path, out: Path, **how: Any) -> None:
    import plait

    plait.ensemble(
        folder / "base", data=folder / "train.jsonl", out=out, method="distilled", members=2, epochs=1, max_length=16,
        batch_size=8, held_back=0.2, keep_members=True, **how,
    )  # fmt: skip


def finetune(folder: Path, out: Path, **how: Any) -> None:
    import plait.api

    plait.api.finetune(
        folder / "base", folder / "train.jsonl", out, epochs=2, max_length=16, batch_size=8, learning_rate=1e-3, **how
    )


def export(folder: Path, out: Path, resume: bool = False, **how: Any) -> None:
    import plait.api

    merged = folder / "merged"
    if not merged.exists():
        merge(folder, merged)
    plait.api.export(merged, out, task="a", **how)


def posteriors(folder: Path, out: Path, resume: bool = False, **how: Any) -> None:
    import plait.api

    teachers = {"a": folder / "source1", "b": folder / "source2"}
    texts = [row["text"] for row in rows(folder)]
    plait.api.posteriors(teachers, texts=texts, out=out, passes=2, max_length=16, **how)


def estimate(folder: Path, out: Path, resume: bool = False, **how: Any) -> None:
    import plait.api

    plait.api.estimate(folder / "source1", folder / "train.jsonl", examples=8, out=out, **how)


JOBS: dict[str, Callable[..., None]] = {
    job.__name__: job
    for job in (merge, refine, amalgamate, ensemble, distilled, finetune, export, posteriors, estimate)
}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]


def watch(folder: Path, last: int, tell: int) -> None:
    """Kills this process at its `last`-th step below a folder; tells how many there were through a pipe."""
    taken = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal taken
        if event == "open":
            path, mode, flags = arguments
            writes = any(sign in mode for sign in "wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR)
        else:
            path, writes = (arguments or ("",))[0], event in STEPS
        if writes and isinstance(path, str | os.PathLike) and os.fspath(path).startswith(str(folder)):
            step()

    def step() -> None:
        nonlocal taken
        taken += 1
        os.pwrite(tell, b"%09d" % taken, 0)
        if taken == last:
            os._exit(KILLED)

    def stepping(function: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **options: Any) -> Any:
            step()
            return function(*arguments, **options)

        return stepped

    # These do not announce themselves.
    import plait.checkpoints.output as room

    os.fsync, room.exchange = stepping(os.fsync), stepping(room.exchange)
    sys.addaudithook(hook)


def child(folder: Path, job: str, last: int, how: dict[str, Any], tell: int) -> None:
    """Does a job to its end, or to its N-th step, and leaves this process."""
    code = 1
    try:
        from plait.errors import PlaitError

        if room := how.pop("room", None):
            import resource

            # No file may be larger: for every library that is a full disk, but for the number of the error.
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), resource.RLIM_INFINITY))
        watch(folder, last, tell)
        try:
            JOBS[job](folder, folder / "out", **how)
            code = 0
        except PlaitError as error:
            sys.stderr.write(f"error: {error}\n")
            code = REFUSED
        except BaseException:
            import traceback

            traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def serve(folder: Path) -> None:
    """Answers lines until there are no more."""
    import torch

    import plait.api
    from plait.training import finetune as _  # noqa: F401 - what children need is imported once
    from plait.training import trainer as loop  # noqa: F401

    assert plait.api
    torch.set_num_threads(1)
    prepare(folder)
    counter = os.open(folder / "steps", os.O_RDWR | os.O_CREAT)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        job, number, *options = line.split()
        os.pwrite(counter, b"0" * 9, 0)
        pid = os.fork()
        if pid == 0:
            how = {name: value or True for name, _, value in (option.partition("=") for option in options)}
            child(folder, job, int(number), how, counter)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stdout.write(f"{code} {int(os.pread(counter, 9, 0))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
