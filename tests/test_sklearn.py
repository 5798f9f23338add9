"""TokenRepresentations is an estimator of scikit-learn, and its features are the rows of the model."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import (
    check_do_not_raise_errors_in_init_or_set_params,
    check_estimator,
    check_estimator_cloneable,
    check_estimator_repr,
    check_estimator_tags_renamed,
    check_get_params_invariance,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    check_set_params,
    check_valid_tag_types,
)
from sklearn.utils.validation import check_is_fitted
from tiny import tiny

import tokinterp as ti

TEXTS = ["the river runs", "a dog and a cat", "north to the sea", "we are two", "it is in the house", "of and the"]


@pytest.fixture(scope="module")
def stories():
    """Texts, and the same written backwards."""
    texts = [t.text for t in ti.bundled_texts("story")[:6]]
    halves = [t[i : i + 90] for t in texts for i in (0, 100)]
    return halves + [t[::-1] for t in halves], [0] * 12 + [1] * 12


def test_features_are_the_rows_of_the_model():
    model = tiny()
    prompts = ti.Prompts.from_texts(TEXTS, model)
    for layer in (0, 3):
        batch = ti.capture(model, prompts, range(6), ti.resid([layer]))
        for pooling in ("mean", "last"):
            found = ti.sklearn.TokenRepresentations(model, layer, pooling).fit_transform(TEXTS)
            assert found.shape == (6, 32)
            for i, n in enumerate(prompts.lengths):
                rows = batch.resid(layer)[i, 1:n].numpy()
                expected = rows.mean(0) if pooling == "mean" else rows[-1]
                np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-5)


def test_rows_of_every_token_of_a_class(bundled):
    texts = ["The cat sat, and looked.", "No! Why?"]
    ask = ti.sklearn.TokenRepresentations(bundled, 2, "tokens", classes="punctuation").fit(texts)
    features, labels = ask.rows(texts)
    assert len(features) == len(labels["text"])
    assert labels["text"].tolist() == sorted(labels["text"])
    assert {s.strip() for s in labels["string"]} <= {",", ".", "!", "?"}
    assert set(labels["text"]) == {0, 1}
    np.testing.assert_array_equal(features, ask.transform(texts))


@pytest.mark.slow
def test_pipeline_on_the_bundled_model(bundled, stories):
    texts, labels = stories
    probe = make_pipeline(ti.sklearn.TokenRepresentations(bundled, layer=2), StandardScaler(), LogisticRegression())
    scores = cross_val_score(probe, texts, labels, cv=3)
    assert scores.mean() > 0.8
    probe.fit(texts, labels)
    assert probe.score(texts, labels) > 0.95
    names = probe[:-1].get_feature_names_out()
    assert names[1] == "layer2_channel1"
    assert len(names) == bundled.info.d_model
    search = GridSearchCV(probe, {"tokenrepresentations__layer": [0, 2]}, cv=2).fit(texts, labels)
    assert search.best_params_["tokenrepresentations__layer"] in (0, 2)


def test_layers_side_by_side():
    both = FeatureUnion([(f"l{n}", ti.sklearn.TokenRepresentations(tiny(), n)) for n in (1, 3)])
    assert both.fit_transform(TEXTS).shape == (6, 64)
    assert both.get_feature_names_out()[32] == "l3__layer3_channel0"


def test_settings_and_clone_share_the_model():
    one = ti.sklearn.TokenRepresentations(tiny(), layer=2, classes=["word"])
    two = clone(one)
    assert two is not one
    assert two.model is one.model
    assert two.get_params() == one.get_params()
    assert two.set_params(layer=1) is two
    assert (one.layer, two.layer) == (2, 1)
    assert repr(ti.sklearn.TokenRepresentations(layer=3)) == "TokenRepresentations(layer=3)"
    with pytest.raises(ValueError, match=r"depth=3: no such setting: the settings are model, layer"):
        one.set_params(depth=3)


def test_checks_of_scikit_learn_that_apply():
    """The others fit arrays of numbers."""
    name, estimator = "TokenRepresentations", ti.sklearn.TokenRepresentations()
    for check in (
        check_get_params_invariance, check_set_params, check_no_attributes_set_in_init,
        check_parameters_default_constructible, check_estimator_cloneable, check_estimator_repr,
        check_do_not_raise_errors_in_init_or_set_params, check_valid_tag_types, check_estimator_tags_renamed,
    ):  # fmt: skip
        check(name, estimator)
    with pytest.raises(NotFittedError):
        check_is_fitted(estimator)
    check_is_fitted(ti.sklearn.TokenRepresentations(tiny()).fit(TEXTS))


def test_any_kind_of_column_is_a_list_of_texts():
    ask = ti.sklearn.TokenRepresentations(tiny()).fit(TEXTS)
    expected = ask.transform(TEXTS)
    for given in (tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, dtype=object)[:, None], iter(TEXTS)):
        np.testing.assert_allclose(ask.transform(given), expected, rtol=1e-5)
    batched = ti.sklearn.TokenRepresentations(tiny(), batch_tokens=1).fit_transform(TEXTS)
    np.testing.assert_allclose(batched, expected, rtol=1e-4, atol=1e-5)


def test_refusals():
    ask = ti.sklearn.TokenRepresentations(tiny())
    with pytest.raises(NotFittedError, match="call fit first"):
        ask.transform(TEXTS)
    with pytest.raises(TypeError, match="one string"):
        ask.fit("a text")
    with pytest.raises(TypeError, match=r"texts=\[3\]: text 0 is int, not a string"):
        ask.fit([3])
    with pytest.raises(TypeError, match=r"model=5: give a model: ti\.load_model"):
        ti.sklearn.TokenRepresentations(5).fit(TEXTS)
    for options, text in (({"layer": 9}, "layers 0 to 3"), ({"layer": -1}, "layer=-1: give one layer"),
                          ({"layer": [1]}, "FeatureUnion"),
                          ({"pooling": "max"}, "pooling='max': give one of")):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            ti.sklearn.TokenRepresentations(tiny(), **options).fit(TEXTS)
    with pytest.raises(ValueError, match="text 0 has no token"):
        ti.sklearn.TokenRepresentations(tiny(), classes="punctuation").fit_transform(["abc", "a, b"])


# -- data frames ----------------------------------------------------------------------------------------------
def test_a_pipeline_of_data_frames():
    series = pd.Series(TEXTS, index=[f"row {n}" for n in range(6)])
    plain = ti.sklearn.TokenRepresentations(tiny(), 2).fit_transform(TEXTS)
    ask = ti.sklearn.TokenRepresentations(tiny(), 2)
    assert ask.set_output(transform="pandas") is ask
    frame = ask.fit_transform(series)
    assert isinstance(frame, pd.DataFrame)
    assert frame.index.equals(series.index)
    assert frame.columns.tolist() == ask.get_feature_names_out().tolist()
    np.testing.assert_array_equal(frame, plain)
    assert ask.transform(TEXTS).index.tolist() == list(range(6))  # a list has a method of that name
    assert ask.set_output().transform(TEXTS).shape == plain.shape
    assert isinstance(ask.transform(TEXTS), pd.DataFrame), "None changed something"
    assert isinstance(ask.set_output(transform="default").transform(series), np.ndarray)
    probe = make_pipeline(ti.sklearn.TokenRepresentations(tiny(), 2), StandardScaler(), LogisticRegression())
    probe.set_output(transform="pandas").fit(series, [0, 1] * 3)
    assert probe[-1].feature_names_in_[3] == "layer2_channel3"
    assert isinstance(probe[:-1].transform(series), pd.DataFrame)
    assert isinstance(clone(probe)[0].fit_transform(series), pd.DataFrame), "a clone forgot its output"
    with pytest.raises(ValueError, match="transform='arrow'"):
        ask.set_output(transform="arrow")


def test_output_that_scikit_learn_is_told_to_give():
    ask = ti.sklearn.TokenRepresentations(tiny(), 1).fit(TEXTS)
    chosen = ti.sklearn.TokenRepresentations(tiny(), 1).set_output(transform="default").fit(TEXTS)
    with config_context(transform_output="pandas"):
        assert isinstance(ask.transform(TEXTS), pd.DataFrame)
        assert isinstance(chosen.transform(TEXTS), np.ndarray)
    assert isinstance(ask.transform(TEXTS), np.ndarray)
    with config_context(transform_output="polars"), pytest.raises(ValueError, match="default, pandas"):
        ask.transform(TEXTS)


def test_columns_of_a_table_and_layers_side_by_side_keep_their_names():
    table = pd.DataFrame({"text": TEXTS, "year": range(6)}, index=list("abcdef"))
    both = FeatureUnion([(f"l{n}", ti.sklearn.TokenRepresentations(tiny(), n)) for n in (1, 3)]).set_output(
        transform="pandas"
    )
    frame = both.fit_transform(table["text"])
    assert frame.columns[32] == "l3__layer3_channel0"
    assert frame.index.tolist() == list("abcdef")
    columns = make_column_transformer((ti.sklearn.TokenRepresentations(tiny(), 1), "text"), ("passthrough", ["year"]))
    frame = columns.set_output(transform="pandas").fit_transform(table)
    assert frame.columns[[0, -1]].tolist() == ["tokenrepresentations__layer1_channel0", "passthrough__year"]
    assert frame.shape == (6, 33)


def test_rows_of_tokens_have_no_index_of_texts():
    ask = ti.sklearn.TokenRepresentations(tiny(), 1, "tokens").set_output(transform="pandas")
    frame = ask.fit_transform(pd.Series(TEXTS[:2], index=["a", "b"]))
    assert len(frame) == len(ask.rows(TEXTS[:2])[0]) > 2
    assert frame.index.tolist() == list(range(len(frame)))


def test_what_scikit_learn_checks_of_any_estimator_and_another_process_needs():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Can't test estimator")  # its own checks stop at arrays of numbers
        found = check_estimator(ti.sklearn.TokenRepresentations(tiny()), on_fail="raise")
    assert {r["status"] for r in found} == {"passed"}
    fitted = ti.sklearn.TokenRepresentations(tiny(), 2).set_output(transform="pandas").fit(TEXTS)
    again = pickle.loads(pickle.dumps(fitted))
    pd.testing.assert_frame_equal(again.transform(TEXTS), fitted.transform(TEXTS))
    before = fitted.get_params()
    assert fitted.fit(TEXTS) is fitted
    assert fitted.get_params() == before
    pd.testing.assert_frame_equal(fitted.transform(TEXTS[::-1]), again.transform(TEXTS)[::-1].reset_index(drop=True))
    pd.testing.assert_frame_equal(fitted.transform(TEXTS[:2]), again.transform(TEXTS)[:2], rtol=1e-4, atol=1e-5)


def test_tokens_that_are_left_out_are_as_asked():
    model = tiny()
    prompts = ti.Prompts.from_texts(TEXTS, model)
    batch = ti.capture(model, prompts, range(6), ti.resid([2]))
    for exclude, first in ((("special",), 1), ((), 0)):
        found = ti.sklearn.TokenRepresentations(model, 2, exclude=exclude).fit_transform(TEXTS)
        for i, n in enumerate(prompts.lengths):
            np.testing.assert_allclose(found[i], batch.resid(2)[i, first:n].mean(0), rtol=1e-4, atol=1e-5)
