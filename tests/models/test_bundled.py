"""The bundled models by name."""

import pytest
import torch

import tokinterp as ti
from tokinterp.models import check_source
from tokinterp.models.bundled import bundled_folder
from tokinterp.text.spans import Spans

TEXTS = [t.text for t in ti.bundled_texts()]


@pytest.mark.slow
def test_the_bundled_model_by_name():
    named = ti.load_model("bundled", device="cpu")
    assert named.info == ti.load_model(device="cpu").info
    assert ti.load_tokenizer("bundled")("The Nile")["input_ids"] == named.tokenizer("The Nile")["input_ids"]


def test_the_narrow_model_by_name(tmp_path, monkeypatch):
    model = ti.load_model("bundled/narrow", device="cpu")
    assert (model.info.id, model.info.d_model, model.info.d_vocab) == ("tokinterp/bundled/narrow", 32, 512)
    assert ti.load_tokenizer("bundled/narrow")("The Nile")["input_ids"] == model.tokenizer("The Nile")["input_ids"]
    assert ti.load_model(bundled_folder("bundled/narrow"), device="cpu").info.id != model.info.id
    (tmp_path / "bundled").mkdir()
    (tmp_path / "bundled" / "narrow").mkdir()
    monkeypatch.chdir(tmp_path)  # the name is the package's, a folder is said with ./
    check_source("bundled/narrow")
    with pytest.raises(ValueError, match="config"):
        check_source("./bundled/narrow")


@pytest.mark.parametrize("load", [ti.load_model, ti.load_tokenizer, check_source])
def test_a_bundled_model_that_is_not_there_is_refused(load):
    with pytest.raises(ValueError, match=r"'bundled/broad': give one of \['bundled', 'bundled/narrow'\]"):
        load("bundled/broad")


@pytest.mark.slow
def test_the_narrow_model_forgets_at_the_ends_of_words_and_an_untrained_one_does_not():
    """What the demo, the notebook and the guide show: far from the bounds in the model that ships."""
    model = ti.load_model("bundled/narrow", device="cpu")
    gaps, aurocs = [], []
    for m in (model, ti.untrained(model)):
        fit, test = (ti.Prompts.from_texts(t, m, max_tokens=256, progress=False) for t in (TEXTS[:54], TEXTS[54:]))
        probes = ti.erasure.fit_probes(m, fit, layers=[4, 7, 8], offsets=[-1, 0], method="lda", progress=False)
        psi = ti.erasure.ErasureScores(probes, start=4, end=8, offsets=[0, -1], tokens=None)
        asked = {"scores": ti.erasure.ProbeScores(probes), "psi": psi}
        run = ti.measure(m, test, asked, progress=False)
        gaps.append(run["scores"]["gap"].sel(subset="last piece", offset=0, layer=7).item())
        words = Spans.words(test).align(test)
        aurocs.append(ti.erasure.psi_of_spans(run["psi"].to_dataset(), test, words)["auroc"].sel(subset="word").item())
    assert gaps[0] - gaps[1] > 0.1
    assert aurocs[0] > 0.65
    assert abs(aurocs[1] - 0.5) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_backends_agree_on_the_narrow_model(backend, extras):
    same, other = (ti.load_model("bundled/narrow", backend=b, device="cpu") for b in ("hf", backend))
    prompts = ti.Prompts.from_texts(TEXTS[:2], same, max_tokens=64, progress=False)
    asked = {"states": ti.geometry.TokenNorms(), "lens": ti.lens.LogitLens(top=1)}
    one, two = (ti.measure(m, prompts, asked, progress=False) for m in (same, other))
    for name in asked:
        for variable, values in one[name].data_vars.items():
            if values.dtype.kind == "f":
                found = [torch.tensor(r[name][variable].values) for r in (one, two)]
                torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4, equal_nan=True, msg=variable)
