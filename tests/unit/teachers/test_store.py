"""The store on disk: what is in it, going on after a kill, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import xxhash

from plait.checkpoints.checkpoint import open_checkpoint
from plait.data import open_texts
from plait.errors import DataError, OutputError, RecipeError, SourceError
from plait.evaluation import predict_logits
from plait.teachers import Settings, files, open_store, score_texts
from plait.teachers import early_stopping as rounds
from plait.teachers import shards as run
from tests.models import save, texts, tiny

LINES = texts(26)
QUICK = Settings(passes=3, batch_size=4)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Teachers with two, three and four labels, of three families."""
    folder = tmp_path_factory.mktemp("teachers")
    kinds = {"news": ("bert", 2), "sports": ("roberta", 3), "science": ("albert", 4)}
    return {
        name: save(tiny(family, seed=count, labels=count), folder / name)
        for name, (family, count) in kinds.items()
    }


@pytest.fixture
def teachers(folders):
    def give(*names):
        return [open_checkpoint(folders[name], name=name) for name in names or ("news", "sports")]

    return give


def lines(chunk=10, data=LINES):
    return open_texts(data, chunk=chunk)


def content(folder):
    """Every file with its bytes; the source's place is not part of it."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="session")
def made(folders, tmp_path_factory):
    """A finished store, to copy."""
    folder = tmp_path_factory.mktemp("stores") / "store"
    score_texts(folder, lines(), [open_checkpoint(folders[n], name=n) for n in ("news", "sports")], QUICK)
    return folder


@pytest.fixture
def store(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "store"))


def same(one, other):
    return all(
        torch.equal(value, vars(other)[name]) for name, value in vars(one).items() if value is not None
    )


class TestContent:
    def test_what_is_in_it(self, tmp_path, teachers):
        settings = Settings(passes=3, keep="layers")
        texts = lines(data=[*LINES, "", " "])
        store = score_texts(tmp_path / "s", texts, teachers("news", "science"), settings)
        assert (store.count, store.skipped, store.shards, store.settings) == (26, 2, 3, settings)
        assert [(t.name, t.architecture, t.max_length, len(t.labels)) for t in store.teachers] == [
            ("news", "BertForSequenceClassification", 64, 2),
            ("science", "AlbertForSequenceClassification", 64, 4),
        ]
        assert store.cost.teachers == {"news": 4, "science": 4}
        assert store.cost.total == 8
        science = store.posterior("science")
        assert {name: tuple(value.shape) for name, value in vars(science).items()} == {
            "logits": (26, 4), "mean": (26, 4), "expected_entropy": (26,), "spread": (26,), "passes": (26,),
            "features": (26, 16), "layers": (26, 4, 16),
        }  # fmt: skip
        torch.testing.assert_close(science.mean.sum(1), torch.ones(26))
        assert set(science.passes.tolist()) == {3}
        shards = [store.shard(number) for number in range(3)]
        assert [shard.rows for shard in shards] == [slice(0, 10), slice(10, 20), slice(20, 26)]
        assert torch.equal(torch.cat([s.posteriors["science"].logits for s in shards]), science.logits)
        assert torch.equal(torch.cat([s.hashes for s in shards]), store.hashes)

    def test_hashes_are_those_of_the_texts(self, store):
        wanted = [xxhash.xxh3_128_digest(text.encode()) for text in LINES]
        assert [row.numpy().tobytes() for row in open_store(store).hashes] == wanted

    def test_pairs_have_hashes_of_their_own(self, tmp_path, teachers):
        pairs = {"premise": LINES[:5], "hypothesis": LINES[5:10]}
        found = score_texts(tmp_path / "s", open_texts(pairs), teachers("news"), Settings(passes=0))
        wanted = xxhash.xxh3_128_digest(f"{LINES[0]}\0{LINES[5]}".encode())
        assert found.hashes[0].numpy().tobytes() == wanted

    def test_what_is_not_kept_is_none(self, store):
        found = open_store(store).posterior("news")
        assert (found.features, found.layers) == (None, None)

    def test_teachers_in_the_order_asked_for(self, store):
        assert [t.name for t in open_store(store, ["sports", "news"]).teachers] == ["sports", "news"]
        with pytest.raises(DataError, match=r"no teacher 'sport' \(did you mean 'sports'"):
            open_store(store, ["sport"])
        with pytest.raises(DataError, match=r"no teacher 'sport' \(did you mean 'sports'"):
            open_store(store).posterior("sport")

    def test_the_number_of_texts_in_a_batch_hardly_matters_without_dropout(self, tmp_path, teachers):
        one, many = (
            score_texts(tmp_path / str(size), lines(), teachers("news"), Settings(passes=0, batch_size=size))
            for size in (1, 26)
        )
        torch.testing.assert_close(one.posterior("news").logits, many.posterior("news").logits)

    def test_odd_names_of_teachers(self, tmp_path, folders):
        names = ["a/b", "..", "Sci Tech"]
        some = [open_checkpoint(folders["news"], name=name) for name in names]
        store = score_texts(tmp_path / "s", lines(), some, Settings(passes=0))
        assert [t.name for t in store.teachers] == names
        assert sorted(p.name for p in (tmp_path / "s" / "teachers").iterdir()) == [
            "%2E%2E",
            "Sci Tech",
            "a%2Fb",
        ]


@pytest.fixture
def computed(monkeypatch):
    """Which teacher scored how many texts, call by call."""
    from plait.teachers.mc_dropout import Scorer

    found = []
    score = Scorer.score

    def noted(self, examples, *rest):
        found.append((self.name, len(examples)))
        return score(self, examples, *rest)

    monkeypatch.setattr(Scorer, "score", noted)
    return found


class TestAgain:
    def test_a_finished_store_runs_no_teacher_at_all(self, store, teachers, computed, monkeypatch):
        monkeypatch.setattr("plait.checkpoints.checkpoint.Checkpoint.model", None)
        before = content(store)
        again = score_texts(store, lines(), teachers(), QUICK)
        assert computed == []
        assert content(store) == before
        assert again.cost.total == 8

    def test_a_new_teacher_is_scored_alone(self, store, teachers, computed):
        old = content(store)
        added = score_texts(store, lines(), teachers("science", "news"), QUICK)
        assert computed == [("science", 10), ("science", 10), ("science", 6)]
        assert [t.name for t in added.teachers] == ["science", "news"]
        assert [t.name for t in open_store(store).teachers] == ["news", "sports", "science"]
        assert {
            name: data for name, data in content(store).items() if name in old and name != "store.json"
        } == {name: data for name, data in old.items() if name != "store.json"}

    def test_a_subset_of_the_teachers_is_a_view(self, store, teachers, computed):
        assert [t.name for t in score_texts(store, lines(), teachers("sports"), QUICK).teachers] == ["sports"]
        assert computed == []

    def test_chunks_of_the_texts_are_those_of_the_store(self, store, teachers, computed):
        score_texts(store, lines(chunk=7), teachers(), QUICK)
        score_texts(store, lines(chunk=7), teachers("news", "science"), QUICK)
        assert computed == [("science", 10), ("science", 10), ("science", 6)]

    def test_a_store_that_keeps_more_will_do(self, tmp_path, teachers, computed):
        rich = score_texts(tmp_path / "s", lines(), teachers("news"), Settings(passes=0, keep="layers"))
        computed.clear()
        score_texts(tmp_path / "s", lines(), teachers("news"), Settings(passes=0, keep="features"))
        assert computed == []
        more = score_texts(tmp_path / "s", lines(), teachers("news", "sports"), Settings(passes=0))
        assert more.posterior("sports").layers is not None
        assert rich.settings == more.settings

    @pytest.mark.parametrize("settings", [QUICK, Settings(passes=10, batch_size=4, stop="likely")])
    @pytest.mark.parametrize("after", [1, 2, 4, 5, 7, 9, 12])
    def test_an_interrupted_run_ends_with_the_same_bytes(
        self, after, settings, tmp_path, teachers, monkeypatch
    ):
        whole = tmp_path / "whole"
        score_texts(whole, lines(), teachers(), settings)
        write, left = run.write_shard, after

        def dies(*arguments):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            write(*arguments)

        monkeypatch.setattr(run, "write_shard", dies)
        if after < 9 or settings is not QUICK:
            with pytest.raises(KeyboardInterrupt):
                score_texts(tmp_path / "part", lines(), teachers(), settings)
            with pytest.raises(DataError, match="not scored to the end; run `plait posteriors` again"):
                open_store(tmp_path / "part")
        left = 1000
        score_texts(tmp_path / "part", lines(), teachers(), settings)
        assert content(tmp_path / "part") == content(whole)

    def test_a_killed_run_ends_with_the_same_bytes(self, store, folders, tmp_path, teachers, computed):
        script = tmp_path / "killed.py"
        script.write_text(
            textwrap.dedent(
                f"""
                import os, signal, sys
                from plait.checkpoints.checkpoint import open_checkpoint
                from plait.data import open_texts
                from plait.teachers import Settings, score_texts
                import torch
                torch.set_num_threads(1)

                from pathlib import Path
                def half(path, content, whole=Path.write_bytes):
                    if len(list(Path({str(tmp_path / "part")!r}).rglob("0000*.safetensors"))) == 5:
                        whole(path, b"half of it")
                        os.kill(os.getpid(), signal.SIGKILL)
                    return whole(path, content)

                Path.write_bytes = half
                teachers = [open_checkpoint(path, name=name) for name, path in
                            {[(n, str(folders[n])) for n in ("news", "sports")]!r}]
                score_texts({str(tmp_path / "part")!r}, open_texts({LINES!r}, chunk=10), teachers,
                            Settings(passes=3, batch_size=4))
                """
            )
        )
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert [p.name for p in (tmp_path / "part").rglob("*.partial")]
        score_texts(tmp_path / "part", lines(), teachers(), QUICK)
        assert content(tmp_path / "part") == content(store)
        assert 0 < len(computed) < 6

    def test_overwriting_begins_anew(self, store, teachers, computed):
        again = score_texts(store, lines(data=LINES[:5]), teachers("news"), QUICK, overwrite=True)
        assert (again.count, computed) == (5, [("news", 5)])
        assert sorted(content(store)) == [
            "store.json",
            "teachers/news/00000.safetensors",
            "texts/00000.safetensors",
        ]


def refusal(store, teachers, settings=QUICK, data=LINES, error=DataError, **options):
    with pytest.raises(error) as found:
        score_texts(store, lines(data=data), teachers, settings, **options)
    assert "\n" not in str(found.value)
    return str(found.value)


class TestOtherwise:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"passes": 4}, "passes (found 3, wanted 4)"),
            ({"seed": 1}, "seed (found 0, wanted 1)"),
            ({"last_layers": 1}, "last_layers (found None, wanted 1)"),
            ({"dropout": 0.1}, "dropout (found None, wanted 0.1)"),
            ({"max_length": 9}, "max_length (found None, wanted 9)"),
            ({"keep": "features"}, "keep (found none, wanted features)"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_other_settings(self, change, said, store, teachers):
        before = content(store)
        wanted = Settings(**{"passes": 3, "batch_size": 4} | change)
        assert refusal(store, teachers(), wanted) == (
            f"{store}: the store was made otherwise: {said}; choose another folder, or make this one anew "
            "(plait posteriors --overwrite)"
        )
        assert content(store) == before

    def test_the_batch_size_is_free(self, store, teachers):
        score_texts(store, lines(), teachers(), Settings(passes=3, batch_size=9))

    def test_another_teacher_of_the_same_name(self, store, folders, teachers):
        other = open_checkpoint(folders["sports"], name="news")
        found = open_store(store).teachers[0].digest
        assert refusal(store, [other]) == (
            f"{store}: the store was made otherwise: weights of news (found {found[:8]} of {folders['news']}, wanted "
            f"{other.digest[:8]}); choose another folder, or make this one anew (plait posteriors --overwrite)"
        )

    @pytest.mark.parametrize("what", ["rate", "label", "tokenizer"])
    def test_the_same_weights_with_another_configuration(self, what, store, folders, tmp_path):
        folder = Path(shutil.copytree(folders["news"], tmp_path / "news"))
        file = folder / ("tokenizer.json" if what == "tokenizer" else "config.json")
        text = file.read_text()
        old, new = {
            "rate": ('"hidden_dropout_prob": 0.1', '"hidden_dropout_prob": 0.2'),
            "label": ("sequence-1", "other"),
            "tokenizer": ('"book"', '"buch"'),
        }[what]
        assert old in text
        file.write_text(text.replace(old, new))
        assert "configuration or tokenizer of news" in refusal(store, [open_checkpoint(folder, name="news")])

    def test_other_texts(self, store, teachers):
        assert refusal(store, teachers(), data=[*LINES, "more"]) == (
            f"{store}: the store was made otherwise: texts (found 26 of list, wanted 27 of list); "
            "choose another folder, or make this one anew (plait posteriors --overwrite)"
        )
        assert "texts (" in refusal(store, teachers(), data=[*LINES[1:], LINES[0]])

    def test_all_differences_at_once(self, store, teachers):
        message = refusal(store, teachers(), Settings(passes=4, seed=2), data=LINES[1:])
        assert all(word in message for word in ("passes (", "seed (", "texts ("))

    def test_other_teachers_where_texts_stop_early(self, tmp_path, teachers):
        settings = Settings(passes=8, stop="likely")
        score_texts(tmp_path / "s", lines(), teachers(), settings)
        score_texts(tmp_path / "s", lines(), teachers(), settings)
        assert "teachers, on all of which an early stop depends (found news, sports, wanted news)" in refusal(
            tmp_path / "s", teachers("news"), settings
        )

    def test_another_version(self, store, teachers):
        record = json.loads((store / "store.json").read_text())
        (store / "store.json").write_text(json.dumps({**record, "version": 9}))
        assert f"{store / 'store.json'}: is of kind posteriors, version 9; expected" in refusal(
            store, teachers()
        )

    @pytest.mark.parametrize("text", ["{", "[]", '{"plait": "posteriors", "version": 1}'])
    def test_a_record_that_is_none(self, text, store, teachers):
        (store / "store.json").write_text(text)
        assert f"{store / 'store.json'}: not readable as a store" in refusal(store, teachers())

    def test_no_store(self, tmp_path):
        with pytest.raises(DataError, match=r"no posterior store \(no store.json\)"):
            open_store(tmp_path)


class TestDamage:
    @pytest.mark.parametrize("where", ["teachers/news/00001.safetensors", "texts/00001.safetensors"])
    @pytest.mark.parametrize("size", [0, 5, 200, -10])
    def test_a_truncated_shard(self, where, size, store, made, teachers):
        file = store / where
        data = file.read_bytes()
        file.write_bytes(data[:size])
        with pytest.raises(DataError) as error:
            open_store(store).shard(1)
        message = str(error.value)
        assert message.startswith(f"{file}: truncated or corrupt shard (")
        assert message.endswith("); delete it, and it is scored again")
        assert refusal(store, teachers()) == message
        file.unlink()
        with pytest.raises(DataError, match="this shard is missing"):
            open_store(store).shard(1)
        score_texts(store, lines(), teachers(), QUICK)
        assert content(store) == content(made)

    def test_a_flipped_bit(self, store):
        file = store / "teachers/news/00001.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        with pytest.raises(DataError, match="its content is not what was written"):
            open_store(store).posterior("news")

    def test_a_shard_of_another_store(self, store, tmp_path, teachers):
        other = tmp_path / "other"
        score_texts(other, lines(), teachers(), Settings(passes=2))
        file = store / "teachers/news/00001.safetensors"
        shutil.copy(other / "teachers/news/00001.safetensors", file)
        assert refusal(store, teachers()) == (
            f"{file}: is of another store (other settings); delete it, and it is scored again"
        )
        shutil.copy(store / "teachers/sports/00001.safetensors", file)
        with pytest.raises(DataError, match="is of other weights; delete it"):
            open_store(store).shard(1)

    def test_a_shard_of_other_texts(self, store, teachers):
        shutil.copy(store / "teachers/news/00000.safetensors", store / "teachers/news/00001.safetensors")
        assert "is of another store (other texts)" in refusal(store, teachers())
        with pytest.raises(DataError, match="is of other texts"):
            open_store(store).shard(1)

    def test_texts_that_change_while_they_are_scored(self, tmp_path, teachers, monkeypatch):
        file = tmp_path / "lines.txt"
        file.write_text("\n".join(LINES))
        monkeypatch.setattr(
            run.Run, "finish", lambda *_: file.write_text("\n".join(reversed(LINES))), raising=True
        )
        message = refusal_of(tmp_path / "s", file, teachers())
        assert message == f"{file}: changed while it was scored; leave it alone, and score it again"


def refusal_of(folder, file, teachers):
    with pytest.raises(DataError) as error:
        score_texts(folder, open_texts(file, chunk=10), teachers, QUICK)
    return str(error.value)


class TestPlaces:
    def test_something_else_in_the_folder(self, tmp_path, teachers):
        (tmp_path / "letter.txt").write_text("dear")
        for overwrite in (False, True):
            assert refusal(tmp_path, teachers(), error=OutputError, overwrite=overwrite) == (
                f"{tmp_path} is not empty and holds no posterior store (choose another folder)"
            )
        assert "is a file" in refusal(tmp_path / "letter.txt", teachers(), error=OutputError)

    def test_not_enough_room(self, tmp_path, teachers, monkeypatch):
        monkeypatch.setattr(
            "plait.checkpoints.writer.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0)
        )
        message = refusal(tmp_path / "s", teachers(), error=OutputError)
        assert "not enough space at" in message
        assert not (tmp_path / "s").exists()

    def test_the_disk_runs_full(self, tmp_path, teachers, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        score = files.save
        monkeypatch.setattr(files, "save", lambda *arguments: full() if tmp_path else score(*arguments))
        monkeypatch.setattr(Path, "write_bytes", full)
        message = refusal(tmp_path / "s", teachers(), error=OutputError)
        assert message == (
            f"no space left for {tmp_path / 's' / 'store.json'}: make room and run again, finished shards are kept"
        )
        assert list((tmp_path / "s").iterdir()) == []

    def test_a_place_that_cannot_be_written(self, tmp_path, teachers, monkeypatch):
        def refused(*_, **__):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr("tempfile.mkstemp", refused)
        assert refusal(tmp_path / "s", teachers(), error=OutputError).endswith(
            "store.json: Permission denied"
        )


class TestTeachers:
    @pytest.mark.parametrize(
        ("head", "options", "why"),
        [
            ("regression", {}, "is a regression model (outputs: 1)"),
            ("multi_label", {}, "gives a text several labels (multi-label)"),
            ("token", {}, "is a model for token classification (BertForTokenClassification)"),
            ("qa", {}, "is a model for question answering (BertForQuestionAnswering)"),
            ("body", {}, "has no classification head (BertModel)"),
        ],
    )
    def test_what_cannot_teach(self, head, options, why, tmp_path, teachers):
        odd = open_checkpoint(save(tiny("bert", head, **options), tmp_path / "odd"), name="odd")
        assert refusal(tmp_path / "s", [*teachers("news"), odd], error=SourceError) == (
            f"not a teacher: odd {why}; expected sequence classifiers with two or more labels, one per text"
        )
        assert not (tmp_path / "s").exists()

    def test_a_body_without_dropout_is_said(self, tmp_path, teachers, caplog):
        score_texts(tmp_path / "s", lines(data=LINES[:3]), teachers("science"), QUICK)
        assert [r.getMessage() for r in caplog.records] == [
            "science: only its head has dropout; --dropout RATE injects it elsewhere"
        ]

    def test_one_label(self, tmp_path, teachers):
        (odd,) = teachers("news")
        assert "not a teacher: news has only the label sequence-0; expected" in refusal(
            tmp_path / "s", [replace(odd, labels=("sequence-0",))], error=SourceError
        )

    def test_none_or_twice(self, tmp_path, teachers):
        assert refusal(tmp_path / "s", [], error=RecipeError) == (
            "no teachers given: name at least one checkpoint"
        )
        assert refusal(tmp_path / "s", teachers("news", "news"), error=RecipeError) == (
            "several teachers are called news: give each a name of its own (name=folder)"
        )

    def test_those_without_dropout_or_layers_are_refused_before_anything_is_scored(self, tmp_path, teachers):
        odd = open_checkpoint(save(tiny("modernbert"), tmp_path / "odd"), name="odd")
        third = open_checkpoint(tmp_path / "odd", name="third")
        message = refusal(tmp_path / "s", [*teachers("news"), odd, third], error=SourceError)
        assert message.startswith(
            "odd: its passes are all the same, for the teacher has no dropout: give --dropout"
        )
        assert "; third: its passes are all the same" in message
        assert "odd: last_layers is 3, the teacher has 2 layers" in refusal(
            tmp_path / "s", [odd], Settings(last_layers=3), error=SourceError
        )
        assert not (tmp_path / "s").exists()
        score_texts(tmp_path / "s", lines(), [odd], Settings(passes=2, dropout=0.1))


class TestStop:
    def test_passes_and_cost_are_what_was_run(self, tmp_path, teachers):
        settings = Settings(passes=16, stop="likely")
        store = score_texts(tmp_path / "s", lines(), teachers(), settings)
        news, sports = store.posterior("news"), store.posterior("sports")
        assert torch.equal(news.passes, sports.passes)
        assert set(news.passes.tolist()) <= {4, 8, 12, 16}
        assert news.passes.min() < 16
        assert store.cost.teachers["news"] == pytest.approx(1 + news.passes.float().mean().item())
        assert not list((tmp_path / "s").rglob("*.rounds.*"))
        torch.testing.assert_close(news.mean.sum(1), torch.ones(26))
        assert all(bool(value.isfinite().all()) for value in vars(news).values() if value is not None)

    def test_certain_routes_as_all_passes_do(self, tmp_path, teachers):
        from plait.teachers.early_stopping import scores

        def routes(store):
            return torch.stack([scores(store.posterior(t.name).mean) for t in store.teachers], 1)

        early, whole = (
            score_texts(tmp_path / stop, lines(), teachers(), Settings(passes=16, stop=stop))
            for stop in ("certain", "never")
        )
        closed = early.posterior("news").passes < 16
        gap = routes(whole).diff(dim=1).squeeze(1).abs()
        agree = routes(early).argmax(1) == routes(whole).argmax(1)
        assert agree[closed | (gap > 0.2)].all()

    def test_rounds_of_a_replayed_trunk(self, tmp_path, teachers):
        settings = Settings(passes=8, stop="likely", last_layers=1, keep="features")
        store = score_texts(tmp_path / "s", lines(), teachers(), settings)
        assert store.posterior("news").features.shape == (26, 16)
        assert store.cost.teachers["news"] <= 2 + 8 / 2

    def test_a_damaged_round(self, tmp_path, teachers, monkeypatch):
        monkeypatch.setattr(rounds, "_summarize", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        settings = Settings(passes=8, stop="likely")
        with pytest.raises(KeyboardInterrupt):
            score_texts(tmp_path / "s", lines(), teachers(), settings)
        file = tmp_path / "s" / "teachers/news/00000.rounds.safetensors"
        file.write_bytes(file.read_bytes()[:-3])
        assert f"{file}: truncated or corrupt shard" in refusal(tmp_path / "s", teachers(), settings)


def test_logits_alone_may_come_from_any_head_of_texts(tmp_path):
    for head in ("regression", "multi_label"):
        save(tiny("bert", head, labels=3), tmp_path / head)
    teachers = [open_checkpoint(tmp_path / head) for head in ("regression", "multi_label")]
    told = open_texts(texts(7))
    with pytest.raises(SourceError, match="regression is a regression model"):
        score_texts(tmp_path / "s", told, teachers, Settings(passes=0))
    store = score_texts(tmp_path / "s", told, teachers, Settings(passes=0), logits_only=True)
    for teacher in teachers:
        wanted = torch.stack(predict_logits(teacher.model(), teacher.tokenizer(), next(told.chunks())))
        torch.testing.assert_close(store.posterior(teacher.name).logits, wanted)
    save(tiny("bert", "body"), tmp_path / "bare")
    with pytest.raises(SourceError, match=r"bare has no classification head.*expected classifiers or regressions"):
        score_texts(tmp_path / "t", told, [open_checkpoint(tmp_path / "bare")], Settings(passes=0), logits_only=True)
