"""The erasure experiment on a tiny model: what it returns is what it says; resumed runs, statements, figure, units."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from with_model import as_tree, settings

import tokinterp as ti
from experiments import erasure
from experiments.parts import units as erasure_units
from figures.erasure import compose
from tokinterp.erasure.evaluation_seeds import seed_agreement
from tokinterp.text import shuffle_blocks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ti.load_model(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def done(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    texts = [t.text for t in ti.bundled_texts()]
    return as_tree(erasure.run(asked(model, texts[:8], texts[10:16]), folder)), folder, texts


def asked(model, train, test):
    p = settings(erasure.Settings(), model, train=train, layers=(0, 1, 3), start=1, n_tokens=60, n_seeds=2)
    p.test_texts = lambda: (test, erasure_units.names(test))
    return p


def test_groups_are_what_the_library_measures(done, model):
    tree, _, texts = done
    expected = {
        "scores", "text", "text_vocabulary", "text_evaluation", "shuffled", "bigram", "units", "ends", "seeds",
    }  # fmt: skip
    assert expected <= set(tree["trained"].children)
    assert {"scores", "text", "units"} <= set(tree["untrained"].children)
    assert float(tree["trained/seeds"]["delta_sd"].min()) > 1e-6  # probes of another seed are other probes
    sizes = ((texts[:8], model.info.max_tokens), (texts[10:16], 60))
    fit, cut = (ti.Prompts.from_texts(t, model, max_tokens=n) for t, n in sizes)
    probes = ti.erasure.fit_probes(model, fit, layers=[0, 1, 3], offsets=erasure_offsets(), progress=False)
    asked = {"e": ti.erasure.ErasureScores(probes, start=1, end=3, offsets=(0, -1, -2), tokens=None)}
    text = ti.measure(model, cut, asked, progress=False)["e"].to_dataset()
    np.testing.assert_allclose(tree["trained/text"]["psi"], text["psi"], rtol=1e-5, atol=1e-7)
    shuffled = ti.measure(model, shuffle_blocks(cut, 5), asked, progress=False)["e"].to_dataset()
    np.testing.assert_allclose(tree["trained/shuffled"]["psi"], shuffled["psi"], rtol=1e-5, atol=1e-7)
    threshold = tree["trained/text"].attrs["threshold"]
    assert threshold == pytest.approx(ti.erasure.permutation_threshold(shuffled), rel=1e-5)
    blank = ti.untrained(model, seed=0)
    assert tree["untrained/scores"].attrs["weights"] == blank.info.weights != model.info.weights


def erasure_offsets():
    return (-3, -2, -1, 0, 1)


def test_a_stopped_run_goes_on_with_the_probes_that_are_there(done, model, monkeypatch):
    tree, folder, texts = done
    monkeypatch.setattr("tokinterp.erasure.probes.train", None)  # nothing may be trained again
    again = erasure.run(asked(model, texts[:8], texts[10:16]), folder)
    for name in ("trained/text", "untrained/scores", "trained/units"):
        xr.testing.assert_equal(again[name], tree[name].to_dataset())
    with pytest.raises(ValueError, match="belongs to another"):
        erasure.run(asked(model, texts[1:8], texts[10:16]), folder)


def test_figure_is_drawn_with_and_without_controls(done):
    tree, *_ = done
    fig = compose(tree)
    assert isinstance(fig, Figure)
    assert fig.get_size_inches()[0] <= 7
    assert fig.axes[0].get_ylabel() == "accuracy"
    gaps = [tree[f"{n}/scores"]["gap"].sel(subset="last piece", offset=0).values for n in ("trained", "untrained")]
    for line, gap in zip(fig.axes[1].lines, gaps, strict=False):
        np.testing.assert_array_equal(line.get_ydata(), gap)
    few = xr.DataTree.from_dict({f"trained/{n}": tree[f"trained/{n}"].to_dataset() for n in ("scores", "text")})
    assert isinstance(compose(few), Figure)


def test_ends_are_the_papers_for_its_depth_and_by_the_gap_else():
    accuracy = np.array([[1, 1, 0.9, 0.9, 0.9], [1, 1, 0.8, 0.5, 0.5]])[:, :, None]
    ds = xr.Dataset(
        {"accuracy": (("subset", "layer", "offset"), accuracy)},
        {"subset": ["other", "last piece"], "layer": [0, 2, 5, 10, 32], "offset": [0]},
    )
    assert erasure.choose_ends(ds, 32, None, None) == (2, 10)
    assert erasure.choose_ends(ds, 40, None, None) == (2, 10)  # by the gap
    assert erasure.choose_ends(ds, 32, 5, 32) == (5, 32)
    assert erasure.default_ends([0, 2, 6, 10, 32], 32, 2) == [6, 10]
    assert erasure.default_ends([0, 1, 3], 3, 1) == [3]


# -- units ----------------------------------------------------------------------------------------------------
def test_units_of_raw_text(tmp_path):
    texts = ["In New York the Bank of England met Ada Lovelace. The Nile flows. He ran.", "no names here"]
    assert erasure_units.names(texts).strings() == ["New York", "Bank of England", "Ada Lovelace"]
    words = tmp_path / "list.tsv"
    words.write_text("lemma\tsynset\nbank of england\tx\nthe nile\ty\nnile\tz\nnames\tw\n", encoding="utf-8")
    assert erasure_units.listed(texts, words).strings() == ["Bank of England", "The Nile"]
    words.write_text("new york\tx\nnew york city\ty\n", encoding="utf-8")
    assert erasure_units.listed(["He left New York"], words).strings() == ["New York"]  # nothing beyond the end
    words.write_text("bank of england\tx\n", encoding="utf-8")
    table = tmp_path / "counterfact.csv"
    table.write_text("text,subject\nThe mother tongue of Danielle Darrieux is,Danielle Darrieux\n", encoding="utf-8")
    read, spans = erasure_units.read_annotated(table, words)
    assert (read, spans.strings()) == (["The mother tongue of Danielle Darrieux is"], ["Danielle Darrieux"])
    plain = tmp_path / "a.txt"
    plain.write_text(texts[0], encoding="utf-8")
    assert len(erasure_units.read_annotated(plain)[1]) == 3
    conll = tmp_path / "b.conll.txt"
    conll.write_text("Ada I-PER\nLovelace I-PER\nran O\n. O\n\nHe O\nran O\n", encoding="utf-8")
    read, spans = erasure_units.read_annotated(conll, limit=1)
    assert (len(read), spans.strings()) == (1, ["Ada Lovelace"])


def test_half_of_the_bundled_spans_fits_half_of_the_texts():
    half = erasure.halved(ti.bundled_spans())
    texts = [t.text for t in ti.bundled_texts()][1::2]
    assert half.texts is not None
    assert list(half.texts) == texts
    whole = ti.bundled_spans()
    assert set(half.strings()) <= set(whole.strings())
    assert len(half) == int((whole.document % 2 == 1).sum()) > 20


# -- probes trained again -------------------------------------------------------------------------------------
def result(psi, delta, segments=((0, 1, 3), (0, 3, 4), (1, 1, 3)), **attrs):
    number, start, stop = np.array(segments).T
    coords = {
        "span_prompt": ("span", number), "start": ("span", start), "stop": ("span", stop), "offset": [0, -1],
        "token_prompt": ("token", [0, 0, 0, 1]), "position": ("token", [1, 2, 3, 1]),
    }  # fmt: skip
    return xr.Dataset({"psi": ("span", psi), "delta": (("token", "offset"), delta)}, coords, attrs)


def test_agreement_of_fits_is_that_of_counting():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 4, 2))
    a[0, 1] = np.nan
    one = result([0.4, 0.9, 0.2], a)
    two = result([0.6, 0.1, 0.3], b, ((0, 1, 3), (0, 3, 4), (1, 2, 4)))
    found = seed_agreement([one, two])
    assert found["shared_segments"].item() == pytest.approx(1 / 3)  # single tokens do not count
    assert found["n_shared"].item() == 1
    assert found["psi_sd"].item() == pytest.approx(np.std([0.4, 0.6], ddof=1))
    assert found["mean_psi"].values == pytest.approx([0.3, 0.45])
    assert found["delta_correlation"].values[0] == pytest.approx(np.corrcoef(a[:, 0], b[:, 0])[0, 1])
    assert found["delta_correlation"].values[1] == pytest.approx(np.corrcoef(a[1:, 1], b[1:, 1])[0, 1])
    assert found["delta_sd"].values[0] == pytest.approx(np.sqrt(np.mean((a[:, 0] - b[:, 0]) ** 2 / 2)))
    same = seed_agreement([one, one])
    assert same["shared_segments"].item() == 1
    assert same["delta_sd"].values == pytest.approx([0, 0])


def test_agreement_refuses_what_is_no_repetition():
    one = result([0.4, 0.9, 0.2], np.zeros((4, 2)), end_layer=3)
    with pytest.raises(ValueError, match=r"results=.*: give a list"):
        seed_agreement([one])
    with pytest.raises(ValueError, match="end_layer is 3 and 4"):
        seed_agreement([one, one.assign_attrs(end_layer=4)])
    with pytest.raises(ValueError, match="delta for other tokens"):
        seed_agreement([one, one.isel(token=slice(2))])
    with pytest.raises(ValueError, match="no delta per token"):
        seed_agreement([one, one.drop_vars("delta")])
