"""Interventions: what must change nothing changes nothing, and hiding equals deleting."""

import numpy as np
import pytest
import torch
from answering import ask, pad
from tiny import byte_tokenizer, tiny, tiny_lm

import tokinterp as ti
from tokinterp.fillers.insertion import insert, insertion_tests
from tokinterp.fillers.interventions import ALL, donors, intervene
from tokinterp.run import edits as E
from tokinterp.text.items import build_items

QUESTIONS = ti.bundled_questions("cloze")[:16]
LONG = {"max_position_embeddings": 256}


@pytest.fixture(scope="module")
def found(bundled):
    return intervene(bundled, QUESTIONS, n_fillers=6)


def of(ds, name):
    return ds["kl"].sel(intervention=name)


@pytest.mark.slow
def test_every_intervention_has_its_row(found, bundled):
    ti.check(found)
    names = found["intervention"].values.tolist()
    assert sum(n.startswith("patch of layer") for n in names) == bundled.info.n_layers + 1
    assert {*ALL} - {*names} == {"windows", "patches"}
    blocks = [n.rsplit(" ", 1)[1] for n in names if ", blocks " in n]
    assert blocks[0].startswith("0-")
    assert blocks[-1].endswith(str(bundled.info.n_layers - 1))


@pytest.mark.slow
def test_without_fillers_nothing_changes(bundled):
    """With k = 0 there is nothing to hide, ablate or patch."""
    without = [i for i in ALL if i != "transplant of the question"]
    ds = intervene(bundled, QUESTIONS[:6], n_fillers=0, interventions=without)
    exact = ds.sel(intervention=[n for n in ds["intervention"].values if n != "transplant"])
    assert float(exact["kl"].max()) == 0
    assert float(abs(exact["log_prob_change"]).max()) == 0
    assert float(of(ds, "transplant").max()) < 1e-5


def test_hiding_equals_deleting(found):
    """Hidden from all behind them, with the places closed, fillers are gone; without, only their places stay."""
    for hidden, deleted in (("knock-out, places closed", "deletion"), ("knock-out", "deletion, places kept")):
        np.testing.assert_allclose(of(found, hidden), of(found, deleted), atol=1e-4)
        both = found["log_prob_change"]
        np.testing.assert_allclose(both.sel(intervention=hidden), both.sel(intervention=deleted), atol=1e-4)
        assert float(of(found, hidden).mean()) > 0.01


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_hiding_equals_deleting_in_every_kind_of_positions(family):
    change = {"n_positions": 256} if family == "gpt2" else LONG
    model = ti.wrap(tiny_lm(family, **change), byte_tokenizer(), id="longer")
    names = ("deletion", "knock-out, places closed", "deletion, places kept", "knock-out")
    ds = intervene(model, [("The river", " in"), ("One and", " two")], n_fillers=4, interventions=names, kind=" x")
    np.testing.assert_allclose(of(ds, names[0]), of(ds, names[1]), atol=1e-4)
    np.testing.assert_allclose(of(ds, names[2]), of(ds, names[3]), atol=1e-4)


def test_truncation_leaves_the_demonstrations_alone(bundled):
    """It equals hiding the target's fillers with the places closed, and not deletion in the demonstrations too."""
    names = ("truncation", "deletion", "knock-out, places closed", "deletion everywhere", "insertion")
    ds = intervene(bundled, QUESTIONS[2:6], n_fillers=4, demonstrations=QUESTIONS[:2], interventions=names)
    ti.check(ds)
    cut = of(ds, "truncation")
    np.testing.assert_array_equal(cut, of(ds, "deletion"))
    np.testing.assert_allclose(cut, of(ds, "knock-out, places closed"), atol=1e-4)
    assert float(abs(cut - of(ds, "deletion everywhere")).min()) > 1e-4
    with pytest.raises(ValueError, match="with demonstrations= truncation"):
        intervene(bundled, QUESTIONS[:2], interventions=["truncation"])


def test_patching_the_last_layer_gives_the_whole(found, bundled):
    last = of(found, f"patch of layer {bundled.info.n_layers}")
    assert float(last.max()) == 0
    np.testing.assert_allclose(of(found, "patch of layer 0"), of(found, "deletion"), atol=1e-5)  # the same token


def test_changes_have_opposite_signs(found):
    both = found["log_prob_change"]
    np.testing.assert_allclose(both.sel(intervention="insertion"), -both.sel(intervention="deletion"), atol=1e-5)


def test_mean_of_equal_states_changes_nothing(bundled):
    """With one item the mean over items is the item's own state; so is a transplant from an equal donor."""
    same = [QUESTIONS[0]] * 3
    ds = intervene(bundled, same, n_fillers=6, interventions=["mean ablation", "resample ablation", "zero ablation"])
    assert float(of(ds, "mean ablation").max()) < 1e-6
    assert float(of(ds, "resample ablation").max()) < 1e-6
    assert float(of(ds, "zero ablation").min()) > 1e-4


def test_transplants_from_an_equal_donor_change_nothing(bundled):
    question = QUESTIONS[0].prompt
    pairs = [(question, " hand"), (question, " result")]  # the same input, another answer: a donor like oneself
    ds = intervene(bundled, pairs, n_fillers=6, interventions=["transplant", "transplant of the question"])
    assert float(ds["kl"].max()) < 1e-6
    assert float(abs(ds["donor_change"]).max()) < 1e-4


@pytest.mark.slow
def test_donors_have_the_same_layout_and_another_answer(bundled):
    items = build_items(bundled, ti.bundled_questions("cloze"), n_fillers=4)
    found = donors(items)
    assert (found >= 0).sum() > 50
    for r, d in enumerate(found):
        if d >= 0:
            assert len(items.ids[d]) == len(items.ids[r])
            assert items.filler[d].tolist() == items.filler[r].tolist()
            assert items.answers[d][0] != items.answers[r][0]


def test_items_without_donor_are_nan(bundled):
    ds = intervene(bundled, [("The sky is", " blue"), ("In the early twentieth", " century")], n_fillers=4,
                   interventions=["transplant", "knock-out"])  # fmt: skip
    assert np.isnan(of(ds, "transplant")).all()
    assert np.isfinite(of(ds, "knock-out")).all()


def test_unseen_keys_and_late_rows_do_not_matter(bundled):
    """Nothing reads the last layer's other rows, and a key without weight can be hidden."""
    items = build_items(bundled, QUESTIONS[:3], n_fillers=4)
    batch = pad(items, [0, 1, 2])
    plain = ask(bundled, batch)
    rows = ~batch.answering & batch.mask
    late = ask(bundled, batch, [E.zero(ti.Site("resid", bundled.info.n_layers), rows)])
    assert torch.equal(late.log_probs, plain.log_probs)
    fillers = torch.from_numpy(items.positions([0, 1, 2], batch.ids.shape[1], "filler"))
    cut = E.knock_out(fillers, batch.answering)
    again = ask(bundled, batch, [cut, cut])  # after the first, their weight is 0
    assert torch.equal(again.log_probs, ask(bundled, batch, [cut]).log_probs)


@pytest.mark.slow
def test_batches_do_not_matter(bundled):
    names = ("knock-out", "mean ablation", "resample ablation", "transplant", "places closed")
    one, many = (intervene(bundled, QUESTIONS[:8], n_fillers=6, interventions=names, batch_tokens=n) for n in (1, 4096))
    np.testing.assert_allclose(one["kl"], many["kl"], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_interventions_are_those_made_by_hand():
    """One item after the other, position by position: what is put where, at which layers, in which blocks."""
    model = ti.wrap(tiny_lm("llama", **LONG), byte_tokenizer(), id="longer")
    pairs = [("Go on", " the"), ("One moon", " river"), ("No ox", " and"), ("Two or more", " to")]
    ds = intervene(model, pairs, n_fillers=4, kind=" x", width=2)
    whole, plain = (build_items(model, pairs, n_fillers=k, kind=" x") for k in (4, 0))
    streams, last = ti.resid(range(3)), ti.Site("resid", 3)
    inner = [ti.Site(name, b) for name in ("key", "value") for b in range(3)]
    dots = [list(range(*f)) for f in whole.filler]
    asked = [list(range(*q)) for q in whole.question]

    def run(ids, sites, edits=(), places=None):
        with torch.no_grad():
            return model.run(torch.from_numpy(ids)[None], sites, edits=edits, position_ids=places)

    def answer(ids, edits=(), places=None):
        with torch.no_grad():
            return model.unembed(run(ids, [last], edits, places)[last][0, -1]).double().log_softmax(-1)

    def put(i, rows, at, sites):
        """Rows (site -> (row, d)) at some places of item i."""
        width = len(whole.ids[i])
        return [E.replace(s, torch.zeros(width, rows[s].shape[-1]).index_put((torch.tensor(at),), rows[s]), at)
                for s in sites]  # fmt: skip

    seen = [run(ids, [*streams, last, *inner]) for ids in whole.ids]
    slots = [{s: seen[i][s][0, dots[i]] for s in streams} for i in range(4)]
    means = {s: torch.stack([x[s] for x in slots]).mean(0) for s in streams}
    other = [2, -1, 0, -1]
    assert donors(whole).tolist() == other
    checked = set()
    for i, (ids, short) in enumerate(zip(whole.ids, plain.ids, strict=True)):
        end, d, full = len(ids) - 1, dots[i], answer(ids)
        behind, place = list(range(d[-1] + 1, end + 1)), torch.arange(len(ids))
        closed = (place - 4 * (place > d[-1]))[None]
        at = torch.arange(len(short))
        kept = (at + 4 * (at >= d[0]))[None]
        wanted = {
            "deletion": answer(short),
            "deletion, places kept": answer(short, (), kept),
            "knock-out": answer(ids, [E.knock_out(d, behind)]),
            "knock-out of the answer": answer(ids, [E.knock_out(d, [end])]),
            "knock-out of the answer, blocks 0-1": answer(ids, [E.knock_out(d, [end], blocks=[0, 1])]),
            "knock-out of the answer, blocks 2-2": answer(ids, [E.knock_out(d, [end], blocks=[2])]),
            "knock-out, places closed": answer(ids, [E.knock_out(d, behind)], closed),
            "places closed": answer(ids, (), closed),
            "blind fillers": answer(ids, [E.knock_out(asked[i], d)]),
            "zero ablation": answer(ids, [E.zero(s, d) for s in streams]),
            "mean ablation": answer(ids, put(i, means, d, streams)),
            "resample ablation": answer(ids, put(i, slots[(i + 1) % 4], d, streams)),
        }  # fmt: skip
        for layer, s in enumerate([*streams, last]):
            new = torch.zeros(len(short), 32).index_put((torch.tensor([len(short) - 1]),), seen[i][s][0, end])
            wanted[f"patch of layer {layer}"] = answer(short, [E.replace(s, new, [len(short) - 1])])
        for name, where in (("transplant", d), ("transplant of the question", asked[i])):
            if other[i] >= 0:
                moved = {s: seen[other[i]][s][0, where] for s in inner}
                wanted[name] = answer(ids, put(i, moved, where, inner))
        (token,) = whole.answers[i]
        for name, p in wanted.items():
            one = ds.sel(intervention=name).isel(prompt=i)
            assert float(one["kl"]) == pytest.approx(float((p.exp() * (p - full)).sum()), abs=1e-5), (name, i)
            assert float(one["log_prob_change"]) == pytest.approx(float((p - full)[token]), abs=1e-4), (name, i)
            change = -float((p.exp() * p).sum()) + float((full.exp() * full).sum())
            assert float(one["entropy_change"]) == pytest.approx(change, abs=1e-4), (name, i)
            assert bool(one["flip"]) == (int(p.argmax()) != int(full.argmax()))
            if name.startswith("transplant"):
                (theirs,) = whole.answers[other[i]]
                assert float(one["donor_change"]) == pytest.approx(float((p - full)[theirs]), abs=1e-4)
                assert int(one["donor_rank"]) == int((p > p[theirs]).sum())
        checked |= {*wanted}
        bare = wanted["deletion"]
        inserted = float((full.exp() * (full - bare)).sum())
        assert float(ds["kl"].sel(intervention="insertion")[i]) == pytest.approx(inserted, abs=1e-5)
    assert checked | {"insertion"} == {*ds["intervention"].values.tolist()}
    exact = {"patch of layer 3"}
    assert (ds["kl"].sel(intervention=[*checked - exact]).max("prompt") > 1e-3).all()


def test_unknown_interventions_and_positions_that_are_not_read():
    with pytest.raises(ValueError, match="'lesion' is none of 'insertion', 'deletion'"):
        intervene(tiny(), QUESTIONS, interventions=["lesion"])
    model = ti.wrap(tiny_lm("bloom"), byte_tokenizer(), id="alibi")
    with pytest.raises(ValueError, match="ignores position_ids"):
        intervene(model, [("The river", " in")], n_fillers=2, kind=" x", interventions=["places closed"])


@pytest.mark.parametrize("name", ["mean ablation", "resample ablation", "transplant", "transplant of the question"])
def test_an_item_alone_is_not_changed_into_itself(name):
    with pytest.raises(ValueError, match=rf"interventions=\['{name}'\]: .* give several questions"):
        intervene(tiny(), [("The river", " in")], n_fillers=2, kind=" x", interventions=[name, "zero ablation"])


def test_an_item_alone_has_all_other_interventions():
    ds = intervene(tiny(), [("The river", " in")], n_fillers=2, kind=" x")
    names = ds["intervention"].values.tolist()
    assert not {*names} & {"mean ablation", "resample ablation", "transplant", "transplant of the question"}
    assert {"zero ablation", "knock-out", "places closed"} <= {*names}
    assert "donor_change" not in ds


def test_items_that_are_not_finite_are_missing_and_the_others_keep_their_places():
    """One item has a token without an embedding: it is NaN under all conditions, and no other item moves up."""
    pairs = [("Go on", " the"), ("No Qx", " and"), ("One moon", " river"), ("Two or more", " to")]
    names = ("deletion", "knock-out", "zero ablation")
    given = {"interventions": names, "n_fillers": 4, "kind": " x"}
    lm = tiny_lm("llama", **LONG)
    plain, model = (ti.wrap(net, byte_tokenizer(), id="longer") for net in (tiny_lm("llama", **LONG), lm))
    (token,) = model.tokenizer("Q", add_special_tokens=False)["input_ids"]
    lm.model.embed_tokens.weight.data[token] = np.nan
    ds, whole = intervene(model, pairs, **given), intervene(plain, pairs, **given)
    for name in ("kl", "log_prob_change", "flip"):
        assert ds[name].isnull().all("intervention").values.tolist() == [False, True, False, False]
        np.testing.assert_allclose(ds[name][:, [0, 2, 3]], whole[name][:, [0, 2, 3]], atol=1e-4)
    made = insert(model, pairs, n_fillers=[4], kinds=[" x", " y"], announce="")
    assert made["log_prob"].isnull().all(made["log_prob"].dims[1:]).values.tolist() == [False, True, False, False]
    assert made["correct"].isnull().any(made["correct"].dims[1:]).values.tolist() == [False, True, False, False]
    assert insertion_tests(made, n_boot=20).attrs["n_groups"] == 3
