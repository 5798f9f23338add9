"""The axis between two classes: planted, by chance, and words whose other tokens fall where they were put."""

import numpy as np
import pytest

import tokinterp as ti
from tokinterp.stats.resample import mean_interval
from tokinterp.tokenizers import class_axis
from tokinterp.tokenizers.segmentation_axis import _interval, _positions

ONE = ["river", "mountain", "city", "king", "dog", "tree", "town", "road"]
MANY = ["rivers", "mountains", "cities", "kings", "dogs", "trees", "towns", "roads"]


def planted(n=40, d=6, seed=0):
    rng = np.random.default_rng(seed)
    label = np.repeat([0, 1], n // 2)
    own = rng.standard_normal((n, d))
    own[:, 0] = 0.1 * own[:, 0] + label
    half = own.copy()
    half[:, 0] = 0.1 * rng.standard_normal(n) + 0.5 * label
    return np.stack([own, half])[:, None] + 3.0, label, np.tile(np.arange(n // 2) % 5, 2)


def every(x):
    return np.ones((len(x), x.shape[2]), dtype=bool)


def test_a_planted_axis_is_found_and_halved_words_fall_halfway():
    x, label, fold = planted()
    at = _positions(x, every(x), label, fold)
    assert at.shape == (2, 1, 40)
    means = [[at[c, 0, label == k].mean() for k in (0, 1)] for c in (0, 1)]
    np.testing.assert_allclose(means, [[0, 1], [0, 0.5]], atol=0.1)


def test_a_word_takes_no_part_in_its_own_axis():
    x, label, fold = planted()
    before = _positions(x, every(x), label, fold)
    other = x.copy()
    other[0, 0, fold == 2] += 100.0
    after = _positions(other, every(x), label, fold)
    np.testing.assert_allclose(after[1, 0, fold == 2], before[1, 0, fold == 2])
    assert np.abs(after[1, 0, fold != 2] - before[1, 0, fold != 2]).max() > 0.01


def test_classes_at_random_have_accuracy_one_half():
    rng = np.random.default_rng(1)
    found = []
    for seed in range(30):
        x, _, fold = planted(seed=seed)
        label = rng.permutation(np.repeat([0, 1], 20))
        at = _positions(x, every(x), label, fold)
        found.append(((at > 0.5) == (label == 1)).mean(-1)[0, 0])
    assert abs(np.mean(found) - 0.5) < 0.06


def test_the_bundled_model_tells_plurals_and_says_where_bytes_fall():
    ds = class_axis(ti.load_model(), ONE, MANY, ["bytes"], layers=[0, 3], folds=4)
    ti.check(ds)
    assert ds["condition"].values.tolist() == ["canonical", "bytes"]
    np.testing.assert_allclose(ds["position"].sel(condition="bytes", layer=0, label="first").notnull(), True)
    assert float(ds["accuracy"].sel(condition="canonical", layer=3)) > 0.7
    low, high = ds["accuracy_interval"].values
    assert (low <= ds["accuracy"].values + 1e-9).all()
    assert (high >= ds["accuracy"].values - 1e-9).all()
    assert (ds["accuracy_null"] < 0.95).all()
    again = class_axis(ti.load_model(), ONE, MANY, ["bytes"], layers=[0, 3], folds=4)
    assert again.attrs["fingerprint"] == ds.attrs["fingerprint"]
    xr_equal = again["position"].equals(ds["position"])
    assert xr_equal


def test_words_that_a_condition_leaves_as_they_are_have_no_part_in_it():
    """Two words are no word to cut; they would stand where the tokenizer's own tokens do."""
    one, many = [*ONE[:5], "ice cream"], [*MANY[:5], "ice creams"]
    ds = class_axis(ti.load_model(), one, many, ["given"], layers=[3], folds=3, n_shuffles=2,
                    given={"rivers": ["river", "s"], "kings": ["k", "ing", "s"], "king": ["k", "ing"]})  # fmt: skip
    ti.check(ds)
    n = ds["n_words"].sel(condition="given").values.tolist()
    assert n == [1, 2]
    assert ds["n_words"].sel(condition="canonical").values.tolist() == [6, 6]
    for name in ("position_interval", "accuracy_interval"):  # of two pairs, one and two words, there is none
        assert np.isnan(ds[name].sel(condition="given")).all()
        assert np.isfinite(ds[name].sel(condition="canonical")).all()
    score = 2 * float(ds["accuracy"].sel(condition="given")[0])
    assert score in (0, 0.5, 1, 1.5, 2), "a half of a word of two, and a word of one"


def test_intervals_are_over_pairs():
    """Two words that are always right or wrong together are one draw: the interval is that of half as many."""
    rng = np.random.default_rng(2)
    both = (rng.random(40) < 0.7).astype(float)
    label, pair, side = np.repeat([0, 1], 40), np.tile(np.arange(40), 2), np.tile(both, 2)[None, None]
    low, high = _interval(side, label, pair, 0.95, 0)
    assert low < both.mean() < high
    alone = mean_interval(both, level=0.95)
    assert float((high - low)[0, 0]) == pytest.approx(alone[1] - alone[0], rel=0.1)
    side[..., 42:] = np.nan  # two words of a class: as that of two pairs
    assert np.isnan(_interval(side, label, pair, 0.95, 0)).all()


def test_an_interval_of_what_is_always_right_is_one_and_of_one_class_a_half():
    """The mean of both classes in every draw, also where a class has more words, which have no partner."""
    label, pair = np.repeat([0, 1], [7, 12]), np.r_[:7, :12]
    assert _interval(np.ones((1, 1, 19)), label, pair, 0.95, 0).ravel().tolist() == [1, 1]
    assert _interval(1.0 - label[None, None], label, pair, 0.95, 0).ravel().tolist() == [0.5, 0.5]


def test_bad_input_is_refused():
    model = ti.load_model()
    with pytest.raises(ValueError, match=r"^template='A \{\} b': it ends with"):
        class_axis(model, ONE, MANY, template="A {} b")
    with pytest.raises(ValueError, match=r"^second='river': the word is in both classes"):
        class_axis(model, ONE, ["river", "x", "y", "z", "w"])
    with pytest.raises(ValueError, match=r"^folds=9: there are 8 words in a class"):
        class_axis(model, ONE, MANY, folds=9)
