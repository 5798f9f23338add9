"""The quantities of the microscope against planted results."""

import numpy as np
import xarray as xr

from experiments.microscope import Settings
from experiments.parts import microscope as microscope_parts


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

        def stage(self, *_):
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
