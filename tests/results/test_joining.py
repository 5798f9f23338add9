"""Runs over different prompts give together what one run over all gives, or are refused."""

import numpy as np
import pytest
import xarray as xr
from every import every_measurement, fitted, models, texts

import tokinterp as ti
from tokinterp.results.joining import join_runs

ASKED = {"norms": ti.geometry.TokenNorms(), "lens": ti.lens.LogitLens(top=2)}
OF_THEIR_PROMPTS = {"Answers", "AnswerStates", "DotAttention", "FillerContents", "PrefixRecall", "QuickLens"}
"""Settings belong to the prompts of a run, one prompt is too few, or places are drawn by the number of the prompt."""
POOLED = {"BlockMaps", "ProbeScores", "TokenNonlinearity"}
"""All that they give is over all prompts together."""


def measured(prompts, asked=ASKED, **options):
    return ti.measure(models()[0], prompts, asked, progress=False, **options)


def pieces(prompts):
    return prompts[[0]], prompts[[1, 2]]


def test_of_every_measurement_what_is_joined_equals_the_whole():
    """Or is left out as worked out over all prompts together: no value may depend on the parts without a word."""
    pooled = set()
    for kind in every_measurement():
        if kind.__name__ in OF_THEIR_PROMPTS:
            continue
        made = kind(**{n: fitted()[n] for n in ("probes", "decoder", "estimator", "concepts") if n in _settings(kind)})
        whole = measured(texts(), {"x": made})["x"].to_dataset()
        tree = join_runs([measured(p, {"x": made}) for p in pieces(texts())], pooled="drop")
        if "x" not in tree.children:
            pooled.add(kind.__name__)
            continue
        for name, v in tree["x"].to_dataset().data_vars.items():
            assert v.sizes == whole[name].sizes, (kind, name)
            if v.dtype.kind == "f":
                np.testing.assert_allclose(v.values, whole[name].values, rtol=1e-4, atol=1e-5, err_msg=f"{kind} {name}")
            else:
                xr.testing.assert_equal(v.drop_vars(v.coords), whole[name].drop_vars(whole[name].coords))
    assert pooled == POOLED


def _settings(kind):
    import inspect

    return inspect.signature(kind).parameters


def test_prompts_documents_and_strings_are_those_of_the_whole():
    model = models()[0]
    many = [t.text[:400] for t in ti.bundled_texts("story")[3:6]]
    made = [ti.Prompts.from_texts(t, model, max_tokens=90, on_long="window") for t in (many[:1], many[1:], many)]
    one, two, whole = (measured(p) for p in made)
    found = join_runs([one, two], pooled="drop")
    for name in ("prompts", "norms", "lens"):
        a, b = found[name].to_dataset(), whole[name].to_dataset()
        for c in ("prompt", "document", "token_document", "text", "vocab_text", "position"):
            assert (c in a.coords) == (c in b.coords), (name, c)
            if c in a.coords:
                assert a[c].values.tolist() == b[c].values.tolist(), (name, c)
    assert "lens" in ti.summary(found["lens"].to_dataset()).attrs["measured"].lower()
    marks = {found["lens"].attrs["fingerprint"], one["lens"].attrs["fingerprint"], whole["lens"].attrs["fingerprint"]}
    assert len(marks) == 3


def test_documents_of_runs_without_windows_are_their_prompts_and_of_no_other_run():
    model = models()[0]
    long = [t.text[:400] for t in ti.bundled_texts("story")[3:6]]
    windows = [ti.Prompts.from_texts(t, model, max_tokens=90, on_long="window") for t in (long[:1], long[1:])]
    whole = ti.Prompts.from_texts([t[:40] for t in long], model)
    found = join_runs([measured(p) for p in (windows[0], whole, windows[1])], pooled="drop")
    documents = np.concatenate([windows[0].documents, 1 + whole.documents, 4 + windows[1].documents])
    ds = found["norms"].to_dataset()
    assert ds["document"].values.tolist() == documents.tolist()
    assert ds["token_document"].values.tolist() == documents[ds["token_prompt"].values].tolist()


def test_what_does_not_belong_together_is_named():
    a, b = pieces(texts())
    one = measured(a)
    for other, message in (
        (one, "two are of the same prompts"),
        (measured(b, {"norms": ASKED["norms"]}), "one has the results lens, norms, prompts, another norms, prompts"),
        (measured(b, {**ASKED, "lens": ti.lens.LogitLens(top=3)}), "they differ in parameters"),
        (measured(b, edits=[ti.edits.zero(ti.Site("attn_out", 0))]), "they differ in edits"),
    ):
        with pytest.raises(ValueError, match=message):
            join_runs([one, other], pooled="drop")


def test_a_prompt_that_is_in_two_runs_is_refused_or_said():
    some = texts()
    one, two = measured(some[[0, 1]]), measured(some[[2, 1]])
    with pytest.raises(ValueError, match=r"1 prompts are in two of them \(prompt 1 of run 1 is prompt 1 of run 0\)"):
        join_runs([one, two], pooled="drop")
    kept = join_runs([one, two], pooled="drop", repeated="keep")
    assert "1 prompts are in two of them" in kept.attrs["history"]
    assert kept["norms"].attrs["history"] == kept.attrs["history"]
    assert kept["norms"].sizes["prompt"] == 4
    twice = measured(some[[0, 0]])  # as one run counts them
    assert join_runs([twice, measured(some[[2]])], pooled="drop")["norms"].sizes["prompt"] == 3


def test_values_over_all_prompts_are_refused_unless_they_are_left_out():
    asked = {"linearity": ti.linearity.Linearity(blocks=[0])}
    parts = [measured(p, asked) for p in pieces(texts())]
    with pytest.raises(ValueError, match=r"of linearity are over all prompts of a run together .*in shares"):
        join_runs(parts)
    left = join_runs(parts, pooled="drop")["linearity"].data_vars
    assert left
    assert all({"prompt", "token"} & {*v.dims} for v in left.values())
