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


class Own(ti.Measurement):
    """Somebody's own measurement, to be made mistakes in."""

    layers = None
    fields = {"size": ti.Field(("prompt",), "size of the prompt")}


def mistaken(**body):
    return type("Mine", (Own,), body)()


def test_an_author_is_told_what_to_write():
    length = "length", lambda b: b.mask.sum(1)

    def told(error, line, **body):
        with pytest.raises(error, match=line):
            measured({"m": mistaken(**body)})

    def kept(name, value):
        return lambda self, batch: self.keep(batch, **{name: value(batch)})

    told(NotImplementedError, r"Mine has no update\(\); did it mean 'updates'\?", updates=kept(*length))
    told(
        TypeError,
        r"keep\(sise=\): it is not in fields, which has size; did you mean 'size'",
        update=kept("sise", length[1]),
    )
    told(TypeError, r"has the shape \(1, \d+\)", update=kept("size", lambda b: b.ids))
    told(
        TypeError, r"append\(size=\) without prompt, which say whose it is: write keep\(batch, size=",
        update=lambda self, batch: self.append(size=batch.mask.sum(1)),
    )  # fmt: skip
    told(
        ValueError, r"unknown dimension 'side' in what Mine gives: say dimensions of your own in coords\(\)",
        fields={"size": ti.Field(("prompt", "side"), "size")}, update=kept("size", lambda b: b.ids[:, :2]),
    )  # fmt: skip
    told(
        TypeError, r"derive\(\) gives other, which fields does not have",
        update=kept("size", length[1]), derive=lambda self, found: {"other": found["size"]},
    )  # fmt: skip
    with pytest.raises(TypeError, match=r"Mine.fields\['size'\]='a size': give a Field, such as"):
        mistaken(fields={"size": "a size"})
    with pytest.raises(TypeError, match=r"Mine.start\(\) is never called"):
        mistaken(start=lambda self, info: None)

    def forgets(self, k=3):
        super(Own, self).__init__()

    told(AttributeError, r"Mine does not keep its argument k: write self\.k = k in __init__", __init__=forgets)
