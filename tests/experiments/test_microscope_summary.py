"""The record of the microscope against loops over planted results, and the quantities it is made of."""

import numpy as np
import pytest
import xarray as xr

from experiments import microscope_parts
from experiments import microscope_summary as summary
from experiments.microscope import Settings
from experiments.microscope_summary import sentences


def test_losses_by_length_are_weighted_by_their_tokens():
    n = np.array([[1, 3], [2, 0]])
    loss, blank = np.array([[1.0, 2.0], [4.0, np.nan]]), np.array([[2.0, 5.0], [2.0, np.nan]])
    each = ("prompt", "bin")
    data = {"n_by_length": (each, n), "context_loss_by_length": (each, loss),
            "context_loss_blank_by_length": (each, blank)}  # fmt: skip
    found = summary._length(xr.Dataset(data, {"bin": [1, 2]}))
    assert found["loss"] == pytest.approx([(1 + 2 * 4) / 3, 2.0])
    assert found["blank"] == pytest.approx([2.0, 5.0])
    said = list(sentences({"memory_length": {"none": found}}))
    assert said == ["context loss, longest prefixes: none 2.000", "the same from the mean state: none 5.000"]


def test_tables_hold_the_numbers_of_their_condition():
    corr = xr.Dataset(
        {"pearson": ("variant", [0.1, 0.2]), "spearman": ("variant", [0.3, 0.4]), "n_tokens": ("variant", [5, 6]),
         "pearson_interval": (("bound", "variant"), [[0.0, 0.1], [0.2, 0.3]])}, {"variant": ["published", "equal"]},
    )  # fmt: skip
    assert summary._correlation(corr)["equal"] == {
        "pearson": 0.2, "low": 0.1, "high": 0.3, "spearman": 0.4, "n_tokens": 6
    }  # fmt: skip
    profile = xr.Dataset(
        {"mean": ("subset", [1.0, 2.0, np.nan]), "effect": ("subset", [-0.5, 0.5, np.nan]),
         "n_tokens": ("subset", [9, 8, 0]), "effect_interval": (("subset", "bound"), [[-1, 0], [0, 1], [np.nan] * 2])},
        {"subset": ["article", "word", "digit"]},
    )  # fmt: skip
    found = summary._profile(profile)
    assert set(found) == {"article", "word"}
    assert found["word"]["effect_interval"] == [0, 1]
    (said,) = sentences({"nonlinearity": {"none": {k: found[k] for k in ("word", "article")}}})
    assert said == "nonlinearity by class, none: article -0.50, word +0.50"
    lens = xr.Dataset(
        {n: (("variant", "prompt", "layer"), np.arange(12.0).reshape(2, 2, 3))
         for n in ("cross_entropy", "entropy", "kl", "agreement", "confidence")}, {"variant": ["raw", "normed"]},
    )  # fmt: skip
    found = summary._lens(lens)
    assert found["raw"]["cross_entropy"] == [1.5, 2.5, 3.5]
    (said,) = sentences({"lens": {"none": found}})
    assert said == "cross-entropy at layer 1, none: raw 2.50, normed 8.50; last 9.50"


def test_linearity_is_said_as_published_and_held_out():
    rows = {"linearity": [0.9, 0.7], "linearity_held_out": [0.5, 0.3], "linearity_without_residual": [0.2, 0.4],
            "linearity_without_residual_held_out": [0.1, np.nan]}  # fmt: skip
    said = list(sentences({"linearity": {"none": rows}, "linearity_all": {"none": rows}}))
    assert said == [
        "linearity, mean over blocks: none 0.800", "linearity held out, mean over blocks: none 0.400",
        "linearity without residual, mean over blocks: none 0.300",
        "linearity without residual held out, mean over blocks: none 0.100",
    ]  # fmt: skip


def test_recall_is_counted_beyond_its_length_and_behind_the_embedding():
    recall = xr.Dataset(
        {"recall": (("token", "layer"), [[0.9, 0.5, 0.7], [0.9, 0.2, 0.2]]), "recall_base": ("token", [0.4, 0.3])},
        {"layer": [0, 1, 2]},
    )
    np.testing.assert_allclose(microscope_parts._gain(recall), [0.6 - 0.4, 0.2 - 0.3])


def test_what_is_about_its_group_has_no_mean_there():
    values = xr.DataArray([1.0, 3.0, 10.0, np.nan, 20.0], dims="token", name="x")
    found = microscope_parts.within(values, np.array([5, 5, 2, 2, 2]))
    np.testing.assert_allclose(found, [-1, 1, -5, np.nan, 5])


def test_memory_is_counted_beyond_the_mean_state(monkeypatch):
    """The part of the decoder, with everything dear put in place of."""
    loss, blank = np.array([3.0, 1.0]), np.array([1.0, 2.0])
    data = {
        "context_loss": ("token", loss), "context_loss_blank": ("token", blank),
        **{f"{n}_by_length": (("prompt", "bin"), np.ones((1, 1)))
           for n in ("context_loss", "context_loss_blank", "n")},
    }  # fmt: skip
    asked = []

    class Case:
        model = out = None
        progress = False

        def texts(self):
            return None

        def beside(self, *_):
            return None

        def measure(self, what, prompts, asked):
            return {"memory": xr.Dataset(data)}

        prompts = None

    monkeypatch.setattr(microscope_parts.ti.memory, "fit_context_decoder", lambda *_, **__: "decoder")
    monkeypatch.setattr(microscope_parts.ti.memory, "ContextMemory", lambda decoder: None)
    monkeypatch.setattr(microscope_parts, "fragments", lambda *_: None)
    monkeypatch.setattr(microscope_parts, "by_class", lambda ds, name, case: ds[name])
    monkeypatch.setattr(microscope_parts, "_tokens", lambda *_: {"nonlinearity": {"nonlinearity_mean": "error"}})
    monkeypatch.setattr(microscope_parts, "correlate", lambda *given: asked.append(given))
    settings = Settings()
    found = microscope_parts.memory(Case(), settings)  # pyright: ignore[reportArgumentType]
    assert found["memory"].values.tolist() == [2, -1]
    assert found["memory_raw"].values.tolist() == [3, 1]
    (given,) = asked
    assert given[0] == "error"
    assert given[1].values.tolist() == [3, 1]
    assert given[3].values.tolist() == [2, -1]
