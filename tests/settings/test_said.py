"""What is refused inside a function, said of the argument that it was given."""

import errno
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.settings import array, checked, places, whole, words

RAGGED = ([[1, 2], [3]], ((1,), 2), [["a", "b"], ["c"]], [xr.Dataset({"x": ("y", [1.0])})], [10**400, [1]])


@checked()
def opened(path: str | Path, name: str = "a") -> None:
    """Refuse in words about a place."""
    if name == "system":
        raise OSError(errno.ENAMETOOLONG, "File name too long", str(path))
    if name == "moved":
        raise FileExistsError(f"{Path(path).absolute()} exists: give another name")
    if name == "nested":
        held(path)
    if name == "elsewhere":
        raise FileNotFoundError("b.txt: no such file")
    raise ValueError(f"no maps at {path}")


@checked()
def held(folder: str | Path) -> None:
    """Refuse in words about a place."""
    raise FileNotFoundError(f"no maps at {folder}")


@pytest.mark.parametrize("kind", [whole, words, places])
@pytest.mark.parametrize("wrong", RAGGED)
def test_a_ragged_list_is_no_array(kind, wrong):
    with pytest.raises((ValueError, TypeError), match=r"^start=.*: give a") as caught:
        kind("start", wrong)
    assert "\n" not in str(caught.value)
    with pytest.raises((ValueError, TypeError), match=r"^start=.*: give a"):
        (kind | array)("start", wrong)


@pytest.mark.parametrize("wrong", RAGGED)
def test_ragged_arguments_of_public_classes(wrong):
    for make, name in (
        (lambda: ti.Spans([0], wrong, [1], ["word"], ["x"], ["abc"]), "start"),
        (lambda: ti.Spans([0], [0], [1], ["word"], wrong, ["abc"]), "type"),
        (lambda: ti.Spans.words(["a b"]).where(wrong), "mask"),
    ):
        with pytest.raises((ValueError, TypeError), match=rf"\b{name}="):
            make()


@pytest.mark.parametrize(
    ("path", "name", "said"),
    [
        ("no.txt", "x", r"^path='no.txt': no maps at no.txt$"),
        (Path("no.txt"), "x", r"^path='no.txt': no maps at no.txt$"),
        (".", "x", r"^path='.': no maps at .$"),
        ("no.txt", "moved", r"^path='no.txt': /.*/no.txt exists: give another name$"),
        ("no.txt", "nested", r"^path='no.txt': no maps at no.txt$"),
        ("no.txt", "elsewhere", r"^b.txt: no such file$"),
        ("x" * 300, "system", r"^\[Errno 36\] path='x+ ...: File name too long$"),
        ("a\nb", "x", r"^path='a\\nb': no maps at a\\nb$"),
    ],
)
def test_a_refusal_about_a_place_names_the_argument(path, name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((OSError, ValueError), match=said) as caught:
        opened(path, name)
    assert "\n" not in str(caught.value)
    if name == "system":
        assert caught.value.errno == errno.ENAMETOOLONG
    if name == "moved":
        assert type(caught.value) is FileExistsError


def test_public_functions_name_the_place_that_they_cannot_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for read, name in (
        (ti.erasure.TokenProbes.load, "path"), (ti.linearity.LinearMaps.load, "path"), (ti.lens.TunedLens.load, "path"),
        (ti.text.read_conll, "file"), (ti.text.read_spans_jsonl, "file"), (ti.read, "path"),
    ):  # fmt: skip
        for place, shown in (("no_such", "no_such"), ("one\ntwo", r"one\\ntwo"), ("x" * 999, "x")):
            with pytest.raises((OSError, ValueError), match=rf"\b{name}='{shown}") as caught:
                read(place)
            assert "\n" not in str(caught.value)


def test_a_result_of_something_else_is_named_wherever_it_is():
    other = xr.Dataset({"lost": ("alpha", np.arange(3.0))}, {"alpha": [0, 1, 2]})
    good = ti.measure(tiny(), some_prompts([9, 8]), {"c": ti.geometry.Curvature()}, progress=False)["c"].to_dataset()
    shown = r"a Dataset of shape \('alpha',\): "
    with pytest.raises(ValueError, match=r"^names='curvature': no variable 'curvature': there are lost"):
        ti.plots.curves(other, "curvature")
    with pytest.raises(ValueError, match=rf"^other={shown}no variable 'curvature': there are lost"):
        ti.plots.curves(good, "curvature", other=other)
    with pytest.raises(ValueError, match=rf"^other\['a'\]={shown}no variable 'curvature': there are lost"):
        ti.plots.curves(good, other={"a": other})
    with pytest.raises(ValueError, match=rf"^ds={shown}no dimension 'prompt'"):
        ti.summary(other)
    with pytest.raises(ValueError, match=rf"^data={shown}not a tokinterp result: "):
        ti.check(other)
    with pytest.raises(ValueError, match=r"^axes=a ndarray of shape \(1,\): give the axes"):
        ti.plots.style.panel_letters(np.array([0.5]))
    for name in ("no_such.txt", "one\ntwo"):
        with pytest.raises(
            ValueError, match=r"^names='(no_such.txt|one\\ntwo)': the result has no such value"
        ) as caught:
            ti.plots.rows(good, name, "layer")
        assert "\n" not in str(caught.value)
    for wrong in ({"a": [[1, 2], [3]]}, {"a": other}):
        with pytest.raises((ValueError, TypeError), match=r"^classes=.*: give an array, or lists of one length"):
            ti.geometry.NeighbourOverlap(classes=wrong)
