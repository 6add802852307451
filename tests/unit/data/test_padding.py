"""What a model says of a text does not depend on the texts beside it, whichever of model and tokenizer can pad."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import plait
from plait.data import collate, encode, plan, read_examples
from plait.errors import DataError, SourceError
from plait.evaluation import predict_logits
from tests.decoders import TEXTS, decoder

LABELS = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
# What the config says, what the tokenizer says: either, none, both, and both at odds.
PADS = [(3, None), (None, "[PAD]"), (None, None), (0, "[PAD]"), (2, "[PAD]"), (-1, None)]


def own_answers(folder):
    """Returns the logits of each text alone, as transformers gives them."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return torch.cat([model.eval()(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])


@pytest.fixture(params=PADS, ids=[f"config {a}, tokenizer {b}" for a, b in PADS])
def classifier(request, tmp_path):
    inside, beside = request.param
    return decoder(
        tmp_path / "gpt", AutoModelForSequenceClassification, pad=beside, pad_token_id=inside, num_labels=2, **LABELS
    )


def test_logits_do_not_depend_on_the_batch(classifier):
    expected = own_answers(classifier)
    assert len(set(expected.argmax(-1).tolist())) == 2
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    found = torch.stack(predict_logits(model, tokenizer, read_examples({"text": TEXTS}), batch_size=4))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_merged_predictions_do_not_depend_on_the_batch(classifier, tmp_path):
    expected = own_answers(classifier).softmax(-1)
    merged = plait.merge({"x": classifier, "y": classifier}, out=tmp_path / "m")
    found = merged.predict(TEXTS, batch_size=4)
    for task in ("x", "y"):
        scores = torch.tensor([list(one["scores"].values()) for one in found[task]])
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


def test_statistics_do_not_depend_on_the_batch(classifier, tmp_path):
    rows = {"text": TEXTS, "label": [0, 1] * 3}
    states = []
    for size in (1, 4):
        data, out = {"x": rows, "y": rows}, tmp_path / str(size)
        plait.merge({"x": classifier, "y": classifier}, out=out, method="regmean", data=data, batch_size=size)
        states.append(load_file(out / "model.safetensors"))
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=1e-4, rtol=1e-4)


def test_batches_are_of_one_length_where_nothing_pads(tmp_path):
    folder = decoder(tmp_path / "gpt", AutoModelForSequenceClassification, pad_token_id=-1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = encode(read_examples({"text": [*TEXTS, "great", "awful"]}), tokenizer)
    lengths = [{encoded.lengths[row] for row in rows} for rows in plan(encoded, 8)]
    assert all(len(found) == 1 for found in lengths)
    assert [len(rows) for rows in plan(encoded, 8)].count(4) == 1, "texts of one word share a batch"
    with pytest.raises(DataError, match="cannot share a batch"):
        collate(encoded.features, encoded.padding)


@pytest.mark.parametrize(("inside", "beside", "expected"), [(None, "[PAD]", 0), (4, "[PAD]", 4), (4, None, 4)])
def test_training_records_the_padding_it_used(tmp_path, inside, beside, expected):
    base = decoder(tmp_path / "gpt", AutoModelForSequenceClassification, pad=beside, pad_token_id=inside)
    plait.finetune(base, {"text": TEXTS, "label": ["x", "y"] * 3}, tmp_path / "f", epochs=1, batch_size=4)
    assert json.loads((tmp_path / "f/config.json").read_text())["pad_token_id"] == expected


def test_training_without_any_padding_is_refused(tmp_path):
    base = decoder(tmp_path / "gpt", AutoModelForSequenceClassification)
    with pytest.raises(SourceError, match="pad_token_id"):
        plait.finetune(base, {"text": TEXTS, "label": ["x", "y"] * 3}, tmp_path / "f", epochs=1)
