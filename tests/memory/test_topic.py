"""The topic of a text from one token: the features of the scikit-learn transformer, planted topics, controls."""

import numpy as np
import pytest
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.memory import topic, topic_probe

TOPICS = ["water" if n % 3 else "court" for n in range(30)]
TEXTS = [f"{'the river' if t == 'water' else 'to the king'} and the {'abcdefgh'[n % 8]} in {n}"
         for n, t in enumerate(TOPICS)]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return ti.wrap(tiny_lm("llama"), byte_tokenizer(), id="tiny")


def ask(model, **given):
    return topic_probe(model, **{"prompts": TEXTS, "labels": TOPICS, "positions": [2, 6], **given})


def test_states_are_those_of_the_transformer_of_scikit_learn(model, monkeypatch):
    seen, real = [], topic._held_out
    monkeypatch.setattr(topic, "_held_out", lambda x, *a: seen.append(x) or real(x, *a))
    ask(model, layers=[3], positions=[2, 5])
    rows, told = ti.sklearn.TokenRepresentations(model, 3, pooling="tokens").fit(TEXTS).rows(TEXTS)
    for n, position in enumerate((2, 5)):
        np.testing.assert_allclose(seen[n * (1 + topic.PERMUTED)], rows[told["position"] == position], rtol=1e-5)


def test_a_topic_that_the_text_tells_is_read_and_permuted_ones_are_not(model):
    ds = ask(model)
    assert float(ds["accuracy_frequent"]) == pytest.approx(2 / 3, abs=0.01)
    assert float(ds["accuracy"].sel(position=6, layer=3)) > 0.9
    assert float(ds["accuracy_shuffled"].mean()) < 0.72
    lower, upper = ds["accuracy_interval"]
    assert ((lower <= ds["accuracy"]) & (ds["accuracy"] <= upper)).all()
    same = [t.replace("to the king", "the river") for t in TEXTS]
    assert float(ask(model, prompts=same, positions=[2])["accuracy"].max()) < 0.75, "nothing tells it"


def test_no_probe_sees_the_documents_it_is_scored_on():
    rng = np.random.default_rng(0)
    x, y, fold = rng.standard_normal((200, 300)), rng.integers(0, 2, 200), np.arange(200) % 5
    assert abs((topic._held_out(x, y, fold, 5, 1e-3) == y).mean() - 0.5) < 0.15, "more channels than rows fit anything"
    z = x[:, :20]
    z[:, 0] = 9 * y
    assert (topic._held_out(z, y, fold, 5, 0.1) == y).mean() > 0.9


def test_windows_of_a_document_are_in_one_fold(model, monkeypatch):
    folds, real = [], topic._held_out
    monkeypatch.setattr(topic, "_held_out", lambda x, y, fold, *a: folds.append(fold) or real(x, y, fold, *a))
    prompts = ti.Prompts.from_texts(TEXTS, model, max_tokens=9, on_long="window", progress=False)
    ds = ask(model, prompts=prompts, layers=[1])
    long = np.flatnonzero(np.asarray(prompts.lengths) > 6)
    assert int(ds["n_prompts"]) == len(long) > len(TEXTS)
    for n in range(30):
        assert len(set(folds[0][prompts.documents[long] == n])) == 1


def test_a_text_without_a_label_takes_no_part(model):
    ds = ask(model, labels=["" if n < 5 else t for n, t in enumerate(TOPICS)], layers=[1])
    alone = ask(model, prompts=TEXTS[5:], labels=TOPICS[5:], layers=[1])
    assert int(ds["n_prompts"]) == 25
    assert ds.attrs["labels"] == "court, water"
    np.testing.assert_allclose(ds["accuracy"], alone["accuracy"])


def test_what_does_not_fit_is_refused(model):
    for given, message in (
        ({"labels": ["a"]}, "labels: 1 of them: give one for each of 30 documents"),
        ({"labels": ["a"] * 30}, r"labels: \['a'\] of the texts that are long enough"),
        ({"positions": [60]}, "folds=5: 0 documents have more than 60 tokens"),
        ({"positions": [4, 2]}, "positions"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(model, **given)
