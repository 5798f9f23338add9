"""The whole path to the bundled model (prepare, train, export, evaluate, check) on made-up articles."""

import csv
import json
import lzma
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.bundled import checks, evaluation, forward
from experiments.bundled import data as texts_of
from experiments.bundled import train as making

pytestmark = pytest.mark.slow

TINY = replace(
    making.PRESETS["cpu"],
    blocks=2,
    d_model=32,
    heads=2,
    mlp=48,
    vocab=400,
    tokens=1024,
    lengths=(256, 512, 1024),
    warmup=2,
    validate_every=4,
    micro=512,
)


def sentences(rng: random.Random, words: list[str], count: int) -> str:
    lines = ["Etymology.", "- a list item that is long enough to be kept if it were not an item of a list at all."]
    lines += [" ".join(rng.choices(words, k=40)).capitalize() + "." for _ in range(count)]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A data folder in the format of the real one; the run prepared from it, and the counts."""
    folder = tmp_path_factory.mktemp("bundled")
    text = folder / "data" / "text"
    text.mkdir(parents=True)
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghiklmnoprstu", k=rng.randint(2, 9))) for _ in range(500)]
    rows = [{"id": str(1000 + i), "title": f"Title {i}", "text": sentences(rng, words, 6)} for i in range(300)]
    rows[1]["text"] = rows[0]["text"]
    with lzma.open(text / "enwiki2015_AA.jsonl.xz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    for name in texts_of.TEST_SETS[:3]:
        with lzma.open(text / f"{name}.csv.xz", "wt", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", "url", "title", "text"])
            writer.writeheader()
            writer.writerow({"id": "1007", "url": "", "title": "Other", "text": rows[9]["text"]})
    (text / "wikitext103_1000.json").write_text(json.dumps([" = Title 20 = \n a b c ", "d e f"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKINTERP_DATA", str(folder / "data"))
        counts = texts_of.prepare(folder / "run", TINY.vocab, processes=1)
        yield folder / "run", counts


def test_prepare_counts_and_holds_out(run):
    folder, counts = run
    assert counts["articles"] == 300
    assert counts["duplicate_articles"] == 1
    assert counts["overlap"] == 3  # one by id, one by its text, one by its title
    assert counts["overlap_by_set"]["wikitext103_1000"] == {"by_id_or_title": 1, "by_13gram": 0, "either": 1}
    assert counts["train_articles"] + counts["val_articles"] == 300 - 4
    held = [json.loads(line)["id"] for line in (folder / "val.jsonl").read_text().splitlines()]
    assert len(held) == counts["val_articles"] > 0
    stream = np.load(folder / "train_00.npy")
    assert stream.dtype == np.uint16
    assert (stream == 0).sum() == (stream == 1).sum() == counts["train_articles"]


def test_clean_drops_headings_and_debris():
    text = 'Attila ( or; fl. 434), called ""the Hun"" ( ), was the feared ruler of the Huns and of many others.:444'
    clean = 'Attila (fl. 434), called "the Hun", was the feared ruler of the Huns and of many others.'
    assert texts_of.clean(text + "\nEtymology.") == [clean]
    assert texts_of.clean("The value of formula_1 is the same as the value of the other one in all of the cases.") == []


def test_tokenizer_round_trip(run):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run[0] / "tokenizer")
    text = "Söder  1990's café.\n\nNew (x)"
    out = tokenizer(text, return_offsets_mapping=True)
    assert out["input_ids"][0] == tokenizer.bos_token_id == 0
    assert tokenizer.decode(out["input_ids"], skip_special_tokens=True) == text
    assert all(len(t.lstrip("Ġ")) == 1 for t in tokenizer.tokenize("in 1990") if t[-1].isdigit())
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == out["input_ids"][1:]


@pytest.mark.parametrize("length", [100, 256, 600])
def test_written_out_loss_is_the_models_own(length):
    model = making.build(TINY)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    ids = torch.randint(0, TINY.vocab, (2, length + 1), generator=torch.Generator().manual_seed(0))
    logits = model(input_ids=ids[:, :-1]).logits
    theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(forward.loss_function(model, False)(ids), theirs, rtol=5e-3, atol=0)


def test_rate_warms_up_and_falls_to_zero():
    plan = [[50, 100, 1.0], [80, 90, 0.4]]
    assert [making.rate(s, 10, plan) for s in (0, 9, 49, 50, 75, 80, 85, 90)] == pytest.approx(
        [0.1, 1.0, 1.0, 1.0, 0.5, 0.4, 0.2, 0.0]
    )


def test_windows_visit_every_chunk_once(run):
    data = making.Windows(run[0], 0)
    chunks = len(data.stream) // 1024
    rows = torch.cat([data.batch(1024, 256)[:, 1:].flatten() for _ in range(chunks)])
    expected = np.sort(data.stream[: chunks * 1024].astype(np.int64))
    assert np.array_equal(np.sort(rows.numpy()), expected)


def test_train_resume_export_and_measure(run, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = run

    def train(steps):
        making.train(folder, TINY, None, steps, 4, None, 0.5, False, True)

    for name in ("resume.pt", "log.jsonl"):
        (folder / name).unlink(missing_ok=True)
    train(8)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 8
    assert log[-1]["val_loss"] < np.log(TINY.vocab)
    assert json.loads((folder / "plan.json").read_text())["plan"] == [[4, 8, 1.0]]
    making.export(folder, TINY, "final", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = [json.loads(line)["text"] for line in (folder / "val.jsonl").read_text().splitlines()]
    score = evaluation.model_bits(model, tokenizer, texts, 1024)
    assert score["nats_per_token"] == pytest.approx(log[-1]["val_loss"], abs=0.3)
    cases = checks.resplit_cases(tokenizer, texts, 5, seed=0, before=32)
    for case in cases:
        pieces = tokenizer.convert_ids_to_tokens(case["pieces"])
        assert "".join(pieces) == "Ġ" + case["word"]
        assert len(pieces) > 1
    read = checks.read_out(model, tokenizer, [t[:400] for t in texts for _ in range(4)], 2000, 0, False)["lda"]
    assert read["all"]["accuracy"][0] == 1.0  # layer 0 is the embedding
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"kind": "cloze", "category": "x", "prompt": "a", "answer": " b"}) + "\n")
    assert checks.questions(model, tokenizer, questions)["cloze"]["items"] == 1


def test_windows_score_every_token_once_in_context():
    model = making.build(TINY).eval()
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.5)
    ids = np.random.default_rng(0).integers(3, TINY.vocab, 150).tolist()
    whole = evaluation.token_nats(model, ids, 1024, 0)
    labels = torch.tensor([[0, *ids]])
    assert whole.mean() == pytest.approx(model(input_ids=labels, labels=labels).loss.item(), rel=1e-4)
    short = evaluation.token_nats(model, ids, 64, 0)
    assert np.allclose(short[:64], whole[:64], atol=1e-4)
    assert np.isfinite(short).all()


def test_kneser_ney_sums_to_one():
    rng = np.random.default_rng(0)
    stream = (rng.integers(0, 6, 4000) * rng.integers(0, 6, 4000)).astype(np.uint16)
    model = evaluation.KneserNey(stream, vocab=26)
    for prefix in ((0, 1, 2, 4), (25, 25, 25, 7), (7, 7, 7, 7)):
        nats = np.array([model.nats(np.array([w]), prefix)[0] for w in range(26)])
        assert np.exp(-nats).sum() == pytest.approx(1.0)


def test_token_classes():
    tokens = ["The", "Ġcat", "her", "ine", "'s", "Ġdog", "1", "ab", "cd", "."]
    assert checks.token_classes(tokens).tolist() == [1, 2, 3, 4, 0, 1, 0, 2, 4, 0]
