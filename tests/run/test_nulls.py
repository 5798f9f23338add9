"""Shuffled text, random tokens and untrained networks: what they keep, what they change, and how a run resumes."""

import numpy as np
import pytest
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.files import owner
from tokinterp.run import conditions
from tokinterp.run.nulls import draw_null
from tokinterp.text import random_ids, shuffle_blocks

NULLS = ("none", "shuffle:0", "shuffle:2", "random_ids", "untrained")


def asked():
    return {"cosine": ti.geometry.CosineSimilarity(), "overlap": ti.geometry.NeighbourOverlap((1, 3), tokens=2)}


@pytest.fixture(scope="module")
def run():
    return ti.measure_nulls(tiny(), some_prompts([22, 30, 17]), asked(), NULLS, progress=False)


def test_each_null_is_what_measure_gives_on_it(run):
    model, prompts = tiny(), some_prompts([22, 30, 17])
    ti.check(run)
    assert run["cosine"]["null"].values.tolist() == list(NULLS)
    by_hand = {
        "none": (model, prompts), "shuffle:0": (model, prompts), "shuffle:2": (model, shuffle_blocks(prompts, 2)),
        "random_ids": (model, random_ids(prompts)), "untrained": (ti.untrained(model), prompts),
    }  # fmt: skip
    for null, (network, texts) in by_hand.items():
        one = ti.measure(network, texts, asked(), progress=False)
        for group in asked():
            for name, v in run[group].to_dataset().data_vars.items():
                np.testing.assert_array_equal(v.sel(null=null).values, one[group][name].values, f"{null} {name}")
    assert "token_overlap" not in run["overlap"]


def test_windows_of_a_document_belong_together_under_every_null():
    texts = ["the river ran to the north and a moon rose " * 3, "a day in the sun, the owl slept on an oak " * 3]
    windows = ti.Prompts.from_texts(texts, tiny(), max_tokens=20, on_long="window", progress=False)
    assert len(windows) > 4
    asked = {"cosine": ti.geometry.CosineSimilarity()}
    for nulls in (("none", "shuffle:2", "untrained"), ("shuffle:2", "random_ids", "shuffle_words")):
        found = ti.measure_nulls(tiny(), windows, asked, nulls, progress=False)["cosine"].to_dataset()
        assert found["document"].values.tolist() == windows.documents.tolist()
        assert ti.contrast(found, nulls[1], nulls[0]).attrs["n_groups"] == 2


def test_the_controls_differ_from_the_text(run):
    cosine = run["cosine"]["cosine"].mean("prompt")
    np.testing.assert_array_equal(cosine.sel(null="none"), cosine.sel(null="shuffle:0"))
    assert float(cosine.sel(null="shuffle:2", layer=0)) == pytest.approx(float(cosine.sel(null="none", layer=0)))
    for null in ("shuffle:2", "random_ids", "untrained"):
        assert abs(float(cosine.sel(null=null, layer=3) - cosine.sel(null="none", layer=3))) > 1e-3


@pytest.mark.slow
def test_stopped_and_resumed(run, tmp_path, monkeypatch):
    path, whole = tmp_path / "a.zarr", conditions.measure
    calls = []

    def stops(model, prompts, measurements, **options):
        calls.append(prompts.hash)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(model, prompts, measurements, **options)

    monkeypatch.setattr(conditions, "measure", stops)
    with pytest.raises(KeyboardInterrupt):
        ti.measure_nulls(tiny(), some_prompts([22, 30, 17]), asked(), NULLS, store=path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr.nulls"]
    kept = ["none.zarr", "run.json", "shuffle_0.zarr", "shuffle_2.zarr"]
    assert sorted(p.name for p in (tmp_path / "a.zarr.nulls").iterdir()) == kept
    done = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    monkeypatch.setattr(conditions, "measure", lambda *a, **o: (calls.append(done), whole(*a, **o))[1])
    again = ti.measure_nulls(tiny(), some_prompts([22, 30, 17]), asked(), NULLS, store=path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    for group in asked():
        for name, v in run[group].to_dataset().data_vars.items():
            np.testing.assert_array_equal(again[group][name].values, v.values, str(name))
    read = ti.measure_nulls(tiny(), some_prompts([22, 30, 17]), asked(), NULLS, store=path, progress=False)
    assert read["cosine"].attrs == again["cosine"].attrs
    with pytest.raises(ValueError, match="differs in: nulls"):
        ti.measure_nulls(tiny(), some_prompts([22, 30, 17]), asked(), NULLS[:2], store=path, progress=False)


@pytest.mark.slow
def test_replicates_are_other_draws(tmp_path):
    prompts = some_prompts([22, 30])
    found = ti.measure_nulls(
        tiny(), prompts, {"c": ti.geometry.CosineSimilarity()}, ("none", "shuffle:3"), seed=4, replicates=3,
        store=tmp_path / "b.zarr", progress=False,
    )["c"]  # fmt: skip
    assert found["replicate"].values.tolist() == [4, 5, 6]
    last = found["cosine"].sel(layer=3, prompt=0)
    assert len(np.unique(last.sel(null="none"))) == 1
    assert len(np.unique(last.sel(null="shuffle:3"))) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["b.zarr"]


def test_random_ids_are_different_ordinary_tokens_drawn_from_the_prompt():
    prompts = some_prompts([60, 25, 25], seed=3)
    found = random_ids(prompts, seed=1)
    assert found.lengths == prompts.lengths
    for i in range(3):
        ids = found.ids(i)
        assert ids[0] == prompts.ids(i)[0] == 1  # BOS stays
        assert len(set(ids[1:].tolist())) == len(ids) - 1
        assert not prompts.vocabulary.special(ids[1:]).any()
    np.testing.assert_array_equal(random_ids(prompts[[2, 0]], seed=1).ids(1), found.ids(0))
    assert (random_ids(prompts, seed=2).ids(0) != found.ids(0)).any()
    draws = np.concatenate([random_ids(prompts, seed=s).ids(0)[1:] for s in range(300)])
    count = np.bincount(draws, minlength=prompts.vocabulary.known)
    assert not count[prompts.vocabulary.special_ids].any()
    assert len(count) == prompts.vocabulary.known < prompts.vocabulary.size  # none of the rows without a token
    ordinary = np.setdiff1d(np.arange(prompts.vocabulary.known), prompts.vocabulary.special_ids)
    assert count[ordinary].min() > 0.5 * count[ordinary].mean()
    with pytest.raises(ValueError, match="4 that are not special"):
        random_ids(
            ti.Prompts.from_ids([[0, 1, 2, 3, 1, 2]], type("M", (), {"info": Small, "tokenizer": None, "run": None})())
        )


class Small:
    id, max_tokens, d_vocab = "small", 64, 4


@pytest.mark.parametrize(
    ("nulls", "options", "message"),
    [
        (("shuffled",), {}, "'shuffled'.*shuffle:S"), (("none", "none"), {}, "once"), ((), {}, r"nulls=\(\)"),
        (("none",), {"replicates": 0}, "replicates=0"), (("none",), {"share": (0, 2)}, "share"),
    ],
)  # fmt: skip
def test_impossible_settings(nulls, options, message):
    with pytest.raises(ValueError, match=message):
        ti.measure_nulls(tiny(), some_prompts([20]), asked(), nulls, **options)


def test_labels_of_the_text_do_not_follow_other_tokens():
    labelled = {"o": ti.geometry.NeighbourOverlap((1,), classes={"pos": np.zeros(20, int)})}
    with pytest.raises(ValueError, match="classes= for the tokens of the text"):
        ti.measure_nulls(tiny(), some_prompts([20]), labelled)
    found = ti.measure_nulls(tiny(), some_prompts([20]), labelled, ("none", "untrained"), progress=False)
    assert found["o"]["label_overlap"].sizes["null"] == 2


def test_words_can_be_shuffled_too():
    prompts = ti.Prompts.from_texts(["the river and the sea to the north"], tiny())
    _, found = draw_null(tiny(), prompts, "shuffle_words", 3)
    assert sorted(found.token_ids) == sorted(prompts.token_ids)


@pytest.mark.parametrize("null", ["shuffle:3", "random_ids", "shuffle_words", "untrained"])
def test_seeds_of_every_null_are_other_draws(null):
    text = "the river and the sea to the north and in the south"
    prompts = ti.Prompts.from_texts([text, text[::-1]], tiny())
    drawn = [draw_null(tiny(), prompts, null, seed) for seed in (3, 3, 4)]
    marks = [(model.info.weights, texts.token_ids.tolist()) for model, texts in drawn]
    assert marks[0] == marks[1] != marks[2]


@pytest.mark.parametrize("place", ["discard", "rmtree"])
def test_the_same_call_sweeps_what_a_kill_at_the_end_left(place, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def dies(path, *args, **options):
        raise Killed

    def call():
        norms = {"n": ti.geometry.TokenNorms(tokens=0)}
        return ti.measure_nulls(
            tiny(), some_prompts([9, 8]), norms, ["none"], store=tmp_path / "run.zarr", progress=False
        )

    whole, real = tmp_path / "run.zarr", conditions.discard if place == "discard" else owner.shutil.rmtree

    def at_the_end(path, *args, **options):
        return dies(path) if whole.exists() and "nulls" in str(path.name) else real(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(*((conditions, "discard") if place == "discard" else (owner.shutil, "rmtree")), at_the_end)
        with pytest.raises(Killed):
            call()
    assert len(list(tmp_path.iterdir())) == 2
    assert call()["n"].identical(call()["n"])
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]
