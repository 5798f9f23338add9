"""Entropy before the first token of a word and inside: the rank statistic of scipy, chance, prompts without words."""

import numpy as np
import pytest
from scipy import stats
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti

TEXTS = ["the river and the kings sing to the sea", "bring the nothing into it", " to the and"]


@pytest.fixture(scope="module")
def model():
    return ti.wrap(tiny_lm("llama"), byte_tokenizer(), id="tiny")


def test_entropies_are_those_before_word_starts_and_inside(model):
    ask = {"lens": ti.lens.LogitLens(tokens=None, boundaries=True, variants=("normed", "raw"), layers=[1, 3])}
    prompts = ti.Prompts.from_texts(TEXTS, model, progress=False)
    ds = ti.measure(model, prompts, ask, progress=False)["lens"].to_dataset()
    classes = ti.text.token_classes(prompts)
    begins = classes.mask("word", "stop word", "first piece")
    inside = classes.mask("middle piece", "last piece")
    for p in range(2):
        rows = slice(prompts.starts[p], prompts.starts[p + 1])
        entropy = ds["token_entropy"].values[rows]
        start, rest = begins[rows][1:], inside[rows][1:]
        for name, value in (
            ("boundary_auroc", entropy[:-1]),
            ("spike_auroc", np.diff(entropy, axis=0, prepend=np.nan)[:-1]),
        ):
            for i in range(2):
                for v in range(2):
                    x = value[:, i, v]
                    a, b = (x[s & np.isfinite(x)] for s in (start, rest))
                    wanted = stats.mannwhitneyu(a, b).statistic / len(a) / len(b)
                    assert float(ds[name][p, i, v]) == pytest.approx(wanted, abs=1e-6), name
    assert ds["boundary_auroc"].sel(prompt=2).isnull().all(), "no word of several tokens"


def test_a_trained_model_knows_less_at_word_starts_and_an_untrained_one_does_not(bundled):
    texts = [t.text[:300] for t in ti.bundled_texts("article")[:6]]
    ask = {"lens": ti.lens.LogitLens(layers=[bundled.info.n_layers], tokens=0, boundaries=True)}
    last = [float(ti.measure(m, texts, ask, progress=False)["lens"]["boundary_auroc"].mean())
            for m in (bundled, ti.untrained(bundled))]  # fmt: skip
    assert last[0] > 0.7
    assert abs(last[1] - 0.5) < 0.15


def test_boundaries_need_words_of_several_tokens(model):
    with pytest.raises(ValueError, match="boundaries=True: no word of the prompts has several tokens"):
        ti.measure(model, [" the and"], {"lens": ti.lens.LogitLens(boundaries=True)}, progress=False)
    plain = ti.measure(model, TEXTS, {"lens": ti.lens.LogitLens()}, progress=False)["lens"]
    assert "boundary_auroc" not in plain
