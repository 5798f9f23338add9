"""A measurement of one's own is tried on one prompt: mistakes show before the pass, dimensions can be one's own."""

import numpy as np
import pytest
import torch
import xarray as xr
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.results.dataset import variable


def measured(which, **options):
    return ti.measure(tiny(), some_prompts([22, 30, 17]), which, progress=False, **options)


class Careless(ti.Measurement):
    """Somebody's own measurement, with a mistake."""

    layers = None
    updates = 0

    def update(self, batch):
        type(self).updates += 1
        self.append(prompt=batch.prompt_numbers, size=batch.resid(0).double().norm(dim=-1).sum(1))

    def result(self):
        prompt, size = self.table("prompt", "size")
        return xr.Dataset({"size": ("prompt", size)}, {"prompt": variable("prompt", prompt, "prompt", "1")})


def test_mistakes_in_somebodys_own_measurement_show_before_the_pass():
    with pytest.raises(ValueError, match=r"m: Careless gives .*'size' has no long_name.*declare it in fields"):
        measured({"m": Careless()})
    assert Careless.updates == 1


def test_somebodys_own_dimension_has_a_coordinate_and_tokens_their_places(monkeypatch):
    def result(dims, **coords):
        size = variable(dims, np.zeros((2,) * len(dims)), "size", "1")
        monkeypatch.setattr(Careless, "result", lambda self: xr.Dataset({"size": size}, coords))

    result(("side",))
    with pytest.raises(ValueError, match=r"unknown dimension 'side'.*dimensions of your own in coords"):
        measured({"m": Careless()})
    result(("token",))
    with pytest.raises(ValueError, match="need the coordinates token_prompt and position"):
        measured({"m": Careless()})


class Sided(ti.Measurement):
    """A dimension of one's own, declared."""

    layers = None
    fields = {"size": ti.Field(("prompt", "side"), "size of the first row on both sides")}

    def update(self, batch):
        size = batch.resid(0)[:, 0].double().norm(dim=-1)
        self.keep(batch, size=torch.stack([size, 2 * size], 1))

    def coords(self):
        return {"side": (np.array(["left", "right"]), "side of the row", "1")}


def test_a_declared_dimension_of_ones_own_is_kept_in_files(tmp_path):
    tree = measured({"m": Sided()}, store=tmp_path / "run.zarr")
    assert tree["m"]["side"].values.tolist() == ["left", "right"]
    assert tree["m"].attrs["dimensions"] == "side"
    with pytest.raises(ValueError, match="unknown dimension 'side'"):
        ti.check(tree["m"].to_dataset(inherit=False).drop_vars("side"))


def test_a_word_about_too_short_an_input_is_kept_for_the_end():
    class Picky(Careless):
        def result(self):
            if len(self.table("prompt")[0]) < 2:
                raise ValueError("two prompts at least")
            return super().result().pipe(lambda ds: ds.assign(size=variable("prompt", ds["size"], "size", "1")))

    assert measured({"m": Picky()})["m"].sizes["prompt"] > 1
