"""Conditions: each equals a run of its own; what resumes, what is shared, what pairs."""

import json

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer, some_prompts, tiny, tiny_lm

import tokinterp as ti
from tokinterp.run import conditions as C

E, S = ti.edits, ti.Site
LENGTHS = [12, 9, 14, 7, 11, 8]


def asked():
    return {
        "cosine": ti.geometry.CosineSimilarity(),
        "lens": ti.lens.LogitLens(top=2),
        "norms": ti.geometry.TokenNorms(),
    }


def some():
    prompts = some_prompts(LENGTHS)
    return {
        "whole": ti.Condition(prompts),
        "no MLP": ti.Condition(prompts, [E.zero(S("mlp_out", 1))]),
        "blind: 1": ti.Condition(prompts, [E.knock_out([1, 2])]),
        "untrained": ti.Condition(prompts, model=ti.untrained(tiny())),
    }


def measured(conditions=None, **options):
    return ti.measure_conditions(tiny(), conditions or some(), asked(), progress=False, **options)


@pytest.fixture(scope="module")
def run():
    return measured()


def alone(c):
    return ti.measure(c.model or tiny(), c.prompts, asked(), edits=c.edits, progress=False)


def test_each_condition_is_a_run_of_its_own(run):
    ti.check(run)
    for name, c in some().items():
        one = alone(c)
        for group in ("prompts", *asked()):
            for v in one[group].data_vars:
                found = run[group][v].sel(condition=name)
                np.testing.assert_array_equal(found.values, one[group][v].values, f"{name} {group} {v}")
    assert "token" in run["lens"].dims
    strings = {int(i): str(t) for i, t in zip(run["lens"]["vocab"], run["lens"]["vocab_text"].values, strict=True)}
    assert {*map(int, np.unique(run["lens"]["top_id"]))} <= strings.keys()


def test_what_each_condition_is_can_be_read(run):
    said = json.loads(run["lens"].attrs["conditions"])
    assert list(said) == list(some())
    assert said["no MLP"]["edits"] == ["zero(mlp_out 1)"]
    assert said["whole"]["edits"] == []
    assert len({c["model"] for c in said.values()}) == 2
    assert len({json.dumps(c) for c in said.values()}) == 4


def test_tokens_of_other_texts_stand_apart_and_prompts_stay_pairs():
    short = {"a": ti.Condition(some_prompts([9, 12])), "b": ti.Condition(some_prompts([12, 9], seed=4))}
    found = measured(short)
    for name, c in short.items():
        one = alone(c)["lens"]
        np.testing.assert_array_equal(
            found[f"lens/{name}/token_cross_entropy"].values, one["token_cross_entropy"].values
        )
        for v in ("cross_entropy",):
            np.testing.assert_array_equal(found["lens"][v].sel(condition=name).values, one[v].values)
    assert "token" not in found["lens"].to_dataset(inherit=False).dims


def test_texts_are_tokenised_and_other_numbers_of_prompts_stand_apart():
    texts = {"a": ti.Condition(["The river to the sea.", "And on."]), "b": ti.Condition(["The king."])}
    found = measured(texts)
    assert {*found["lens"].children} == {"a", "b"}
    assert found["lens/a"].to_dataset().sizes["prompt"] == 2
    with pytest.raises(ValueError, match=r"nothing makes pairs under 'a' and 'b'.*by="):
        ti.contrast(found["lens"], "a", "b")


def test_prompts_of_other_documents_are_no_pairs():
    texts = ["The river to the sea and the king, and on.", "And on and on."]
    windows = ti.Prompts.from_texts(texts, tiny(), max_tokens=8, on_long="window", progress=False)
    others = ti.Prompts.from_texts(texts[::-1], tiny(), max_tokens=8, on_long="window", progress=False)
    assert len(windows) == len(others)
    found = measured({"a": ti.Condition(windows), "b": ti.Condition(others)})
    assert {*found["lens"].children} == {"a", "b"}
    with pytest.raises(ValueError, match=r"over='prompt': nothing makes pairs.*group of each"):
        ti.contrast(found["norms"].to_dataset(), "a", "b")


def test_items_pair_prompts_in_any_order_and_name_what_has_no_partner(caplog):
    prompts, order = some_prompts(LENGTHS), [4, 0, 2, 5, 1]
    hidden = [E.knock_out([1, 2])]
    names = [f"item {n}" for n in range(6)]
    plain = {"whole": ti.Condition(prompts), "blind": ti.Condition(prompts, hidden)}
    others = [*(names[n] for n in order[:4]), "stranger"]
    items = {"whole": ti.Condition(prompts, items=names), "blind": ti.Condition(prompts[order], hidden, items=others)}
    wanted = measured(plain)["cosine"]["cosine"].isel(prompt=order[:4])
    wanted = (wanted.sel(condition="blind") - wanted.sel(condition="whole")).mean("prompt")
    found = ti.contrast(measured(items)["cosine"], "blind", minus="whole")
    np.testing.assert_allclose(found["cosine"], wanted, rtol=1e-5, atol=1e-7)
    assert (found.attrs["n_groups"], found.attrs["groups"]) == (4, "items")
    assert json.loads(found.attrs["unpaired"]) == {"blind": ["stranger"], "whole": ["item 1", "item 3"]}
    assert "item leaves out what has no partner: ['stranger'] only under 'blind'" in caplog.text
    with pytest.raises(ValueError, match=r"items=.*: 2 for 6 prompts"):
        measured({"whole": ti.Condition(prompts, items=names[:2])})


def test_items_are_a_part_of_what_a_store_belongs_to(tmp_path):
    prompts, store = some_prompts([9, 12]), tmp_path / "a.zarr"
    one = {"a": ti.Condition(prompts, items=["x", "y"]), "b": ti.Condition(prompts, items=["x", "y"])}
    found = measured(one, store=store)
    assert found["cosine"]["item"].values.tolist() == ["x", "y"]
    other = {**one, "b": ti.Condition(prompts, items=["y", "x"])}
    with pytest.raises(ValueError, match=r"differs in:.*items of 'b'"):
        measured(other, store=store)


def test_a_prompt_that_is_not_finite_under_one_condition_is_left_out_under_all():
    prompts = some_prompts(LENGTHS)

    def third(ids, mask):
        return mask & (mask.sum(1) == LENGTHS[2])[:, None]

    bad = E.add(S("resid", 1), torch.full((32,), float("nan")), third)
    found = measured({"whole": ti.Condition(prompts), "bad": ti.Condition(prompts, [bad])})
    assert found["cosine"]["prompt"].values.tolist() == [0, 1, 3, 4, 5]
    assert found["prompts"]["first_nonfinite_layer"].values[:, 2].tolist() == [-1, 1]
    assert "sums over prompts" in found["cosine"].attrs["left_out"]
    assert "left_out" not in measured({"whole": ti.Condition(prompts)})["cosine"].attrs
    one = ti.measure(tiny(), prompts, asked(), progress=False)["cosine"]["cosine"]
    np.testing.assert_array_equal(
        found["cosine"]["cosine"].sel(condition="whole").values, one.sel(prompt=[0, 1, 3, 4, 5]).values
    )


def same(a, b, rtol=0.0):
    for node in b.subtree:
        for name, v in node.data_vars.items():
            found = a[node.path][name].values
            np.testing.assert_allclose(found, v.values, rtol=rtol, atol=rtol, err_msg=f"{node.path} {name}")


def test_a_stopped_run_goes_on_with_what_is_finished(run, tmp_path, monkeypatch):
    path, whole, calls = tmp_path / "a.zarr", C.measure, []

    def stops(model, prompts, measurements, **options):
        calls.append(options["edits"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(model, prompts, measurements, **options)

    with monkeypatch.context() as patch:
        patch.setattr(C, "measure", stops)
        with pytest.raises(KeyboardInterrupt):
            measured(store=path)
    home = tmp_path / "a.zarr.conditions"
    assert [p.name for p in tmp_path.iterdir()] == [home.name]
    assert sorted(p.name for p in home.iterdir()) == ["0-whole.zarr", "1-no_MLP.zarr", "run.json"]
    with pytest.raises(ValueError, match=r"differs in: edits of 'no MLP'"):
        measured({**some(), "no MLP": some()["whole"]}, store=path)
    passes, ran = type(tiny()).run, []
    with monkeypatch.context() as patch:
        patch.setattr(type(tiny()), "run", lambda *a, **o: (ran.append(o.get("edits", ())), passes(*a, **o))[1])
        same(measured(store=path), run)
    assert not any("mlp_out" in str(e) for edits in ran for e in edits)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_a_store_of_other_conditions_is_refused_with_what_differs(tmp_path):
    one = {k: some()[k] for k in ("whole", "no MLP")}
    store = tmp_path / "a.zarr"
    first = measured(one, store=store)
    again = measured(one, store=store)
    assert again["lens"].to_dataset().identical(first["lens"].to_dataset())
    for other, word in (
        ({**one, "no MLP": ti.Condition(one["whole"].prompts, [E.zero(S("mlp_out", 2))])}, "edits of 'no MLP'"),
        ({**one, "whole": ti.Condition(some_prompts(LENGTHS, seed=1))}, "prompts of 'whole'"),
        ({**one, "whole": ti.Condition(one["whole"].prompts, model=ti.untrained(tiny()))}, "model of 'whole'"),
        ({"whole": one["whole"]}, "conditions"),
    ):
        with pytest.raises(ValueError, match=f"belongs to another run; it differs in:.*{word}"):
            measured(other, store=store)
    ti.measure(tiny(), one["whole"].prompts, asked(), store=tmp_path / "b.zarr", progress=False)
    with pytest.raises(ValueError, match=r"differs in|not of measure_conditions"):
        measured(one, store=tmp_path / "b.zarr")


def test_shares_merge_into_the_same_result(run, tmp_path):
    store = tmp_path / "a.zarr"
    assert not measured(store=store, share=(1, 2)).children
    same(measured(store=store, share=(0, 2)), run, 1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    same(measured(store=store, share=(1, 2)), run, 1e-5)


def test_shares_that_end_in_turns_wait_for_each_other(run, tmp_path, monkeypatch):
    store, whole, calls = tmp_path / "a.zarr", C.measure, []

    def stops(*args, **options):
        calls.append(options["share"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(C, "measure", stops)
        with pytest.raises(KeyboardInterrupt):
            measured(store=store, share=(1, 2))
    assert not measured(store=store, share=(0, 2)).children
    same(measured(store=store, share=(1, 2)), run, 1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_what_does_not_fit_is_refused_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.setattr(C, "measure", lambda *a, **o: pytest.fail("something was run"))
    prompts, whole = some_prompts([9]), ti.Condition(some_prompts([9]))
    for wrong, message in (
        ({"a": whole, "b": ti.Condition(prompts, [E.zero(S("resid", 9))])}, r"conditions\['b'\].*resid"),
        ({"a": whole, "b": ti.Condition(prompts, [E.zero(S("resid", 1), 40)])}, "positions=.40.*edit"),
        ({"a/b": ti.Condition(prompts)}, "without /"), ({}, "conditions"), ({"a": prompts}, "conditions"),
        ({"a": ti.Condition(prompts[:0])}, "no prompts"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=message):
            ti.measure_conditions(tiny(), wrong, asked(), store=tmp_path / "a.zarr", progress=False)
        assert not list(tmp_path.iterdir())


def test_a_network_of_a_condition_that_changes_is_noticed():
    other = ti.wrap(tiny_lm("llama", seed=3), byte_tokenizer(), id="other")

    class Trains(ti.geometry.CosineSimilarity):
        def update(self, batch):
            super().update(batch)
            if batch.model is not other:  # before its own turn comes
                with torch.no_grad():
                    next(other.lm.parameters()).add_(1.0)

    prompts = some_prompts([9])
    with pytest.raises(RuntimeError, match="changed while"):
        ti.measure_conditions(tiny(), {"a": ti.Condition(prompts), "b": ti.Condition(prompts, model=other)},
                              {"c": Trains()}, progress=False)  # fmt: skip
