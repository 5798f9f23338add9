"""Items are exact to the token, nothing inserted changes nothing, and the tests on pairs are those of the books."""

import numpy as np
import pytest
import torch
from tiny import tiny, tiny_lm

import tokinterp as ti
from tokinterp.fillers.answers import ask, compare, pad
from tokinterp.fillers.decision import verdict
from tokinterp.fillers.insertion import insert, insertion_tests
from tokinterp.fillers.items import KINDS, Tokens, build_items
from tokinterp.fillers.read_out import cell_clusters, cluster_cells, deranged, read_fillers
from tokinterp.fillers.residual import VARIANTS, filler_probes, filler_states, shift, slots_of
from tokinterp.fillers.results import binomial, interval, share_explained, sign_test, spearman
from tokinterp.fillers.routes import routing

QUESTIONS = ti.bundled_questions("cloze")[:12]


@pytest.fixture(scope="module")
def found(bundled):
    return insert(bundled, QUESTIONS, n_fillers=[2, 10], kinds=["dots", "words"])


# -- items ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("placement", ["post", "pre"])
def test_items_are_exact_to_the_token(bundled, kind, placement):
    plain = build_items(bundled, QUESTIONS)
    items = build_items(bundled, QUESTIONS, n_fillers=10, kind=kind, placement=placement)
    for i in range(len(items)):
        ids = items.ids[i]
        a, b = items.filler[i]
        assert b - a == 10
        np.testing.assert_array_equal(np.delete(ids, np.arange(a, b)), plain.ids[i])
        assert (a == 1) if placement == "pre" else (b == items.cue[i, 0])
        again = bundled.tokenizer(items.prompts.text(i))["input_ids"]
        assert list(again) == ids.tolist()
        assert not np.isin(items.answers[i], ids[a:b]).any() or kind != "words"
    assert plain.prompts.text(0) == QUESTIONS[0].prompt
    assert items.mark("filler").sum() == 10 * len(items)
    assert items.mark("filler").shape == (items.prompts.n_tokens,)


def test_random_words_are_of_their_seed_and_never_of_the_answer(bundled):
    tokens = Tokens(bundled)
    known = tokens.words[:20].tolist()
    tokens.__dict__["words"] = np.array(known)
    drawn = tokens.fillers("words", 400, np.random.default_rng(0), without=known[:2])
    assert {*drawn} == {*known[2:]}
    made = [build_items(bundled, QUESTIONS[:2], n_fillers=9, kind="words", seed=s) for s in (0, 1, 0)]
    one, other, again = (items.ids[0].tolist() for items in made)
    assert one == again != other
    same = build_items(bundled, [("The sky is", " blue"), ("The sea is", " blue")], n_fillers=9, kind="words")
    first, second = (ids[a:b].tolist() for ids, (a, b) in zip(same.ids, same.filler, strict=True))
    assert first != second


def test_as_many_fillers_fit_as_the_refusal_says(bundled):
    asked = [("Luanda is the capital and largest city of", " Angola")]
    with pytest.raises(ValueError, match=r"at most \d+ fillers fit") as refused:
        build_items(bundled, asked, n_fillers=4000, kind="words", exact=False)
    most = int(str(refused.value).split("at most ")[1].split()[0])
    items = build_items(bundled, asked, n_fillers=most, kind="words", exact=False)
    assert pad(items, [0]).ids.shape[1] == bundled.info.max_tokens
    with pytest.raises(ValueError, match=f"at most {most} fillers fit"):
        build_items(bundled, asked, n_fillers=most + 1, kind="words", exact=False)


def test_kinds_have_equal_token_counts_and_words_differ_by_item(bundled):
    made = {k: build_items(bundled, QUESTIONS, n_fillers=20, kind=k) for k in KINDS}
    for items in made.values():
        assert [len(i) for i in items.ids] == [len(i) for i in made["dots"].ids]
    words = [i[a:b].tolist() for i, (a, b) in zip(made["words"].ids, made["words"].filler, strict=True)]
    assert words[0] != words[1]
    count, shuffled = made["counting"], made["shuffled counting"]
    one, other = (x.ids[0][slice(*x.filler[0])] for x in (count, shuffled))
    assert sorted(one) == sorted(other)
    assert one.tolist() != other.tolist()


def test_cue_and_announcement(bundled):
    items = build_items(bundled, [("The sky is", " blue")], n_fillers=4, cue=" Answer:", announce="Dots follow.\n")
    assert items.prompts.text(0) == "Dots follow.\nThe sky is . . Answer:"


def test_demonstrations_keep_their_fillers_when_the_target_loses_its_own(bundled):
    """C6: the truncated item is the whole one without the target's fillers, those of the demonstrations untouched."""
    shown, asked = QUESTIONS[:2], QUESTIONS[2:5]
    for kind, placement in (("dots", "post"), ("words", "post"), ("dots", "pre")):
        shared = {"kind": kind, "placement": placement, "demonstrations": shown}
        whole = build_items(bundled, asked, n_fillers=4, **shared)
        cut = build_items(bundled, asked, demo_fillers=4, **shared)
        none = build_items(bundled, asked, **shared)
        for i in range(len(asked)):
            a, b = whole.filler[i]
            np.testing.assert_array_equal(np.delete(whole.ids[i], np.arange(a, b)), cut.ids[i])
            assert b - a == 4
            assert len(cut.ids[i]) == len(none.ids[i]) + 2 * 4
            assert none.prompts.text(i) == "".join(f"{q.prompt}{q.answer}\n\n" for q in shown) + asked[i].prompt
    assert whole.filler.min() > len(none.ids[0]) // 2
    with pytest.raises(ValueError, match=r"demonstration 0 .* is one of the questions"):
        build_items(bundled, asked, demonstrations=asked[1:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": ".", "n_fillers": 4}, r"filler '\.' merges with its neighbours .* become \["),
        ({"kind": " .", "n_fillers": 5}, "must be a multiple of 2"),
        ({"n_fillers": 4000}, r"make 4\d\d\d tokens, .* has room for .* at most \d+ fillers fit"),
        ({"n_fillers": -1}, "n_fillers=-1: give .* at least 0"),
        ({"placement": "behind"}, "placement='behind': give 'post' or 'pre'"),
        ({"questions": []}, "no questions"),
        ({"questions": [("The sky is", "blue")], "cue": None}, None),
        ({"kind": "xq", "n_fillers": 3}, "merges|multiple"),
    ],
)
def test_bad_items(bundled, settings, message):
    if message is None:
        build_items(bundled, **settings)
        return
    with pytest.raises(ValueError, match=message):
        build_items(bundled, **{"questions": QUESTIONS, **settings})


def test_a_filler_that_merges_with_the_cue_says_what_it_became(bundled):
    """A filler that stands by itself but not before this cue."""
    tokens = Tokens(bundled)
    text = "\n"
    assert tokens.unit(text)
    merged = None
    for kind in ("\n", " .", " ,", " -", "\t", "!"):
        for cue in (" other", "\n\nx", ".", "..", ",", "!!", "-"):
            try:
                build_items(
                    bundled, [("The sky is", " blue")], n_fillers=2 * len(tokens.unit(kind)), kind=kind, cue=cue
                )
            except ValueError as error:
                merged = merged or str(error)
    assert merged is not None
    assert "become" in merged
    assert "exact=False" in merged


# -- answers --------------------------------------------------------------------------------------------------
def test_log_probability_is_teacher_forced_over_the_whole_answer(bundled):
    items = build_items(bundled, [("Luanda is the capital and largest city of", " Angola"), ("The sky is", " blue")])
    got = ask(bundled, pad(items, [0, 1]))
    for i in range(2):
        whole = torch.tensor(np.concatenate([items.ids[i], items.answers[i]]))[None]
        with torch.no_grad():
            logp = bundled.lm(whole).logits[0].log_softmax(-1)
        places = range(len(items.ids[i]) - 1, whole.shape[1] - 1)
        assert float(got.log_prob[i]) == pytest.approx(sum(float(logp[p, whole[0, p + 1]]) for p in places), abs=1e-4)
        assert bool(got.correct[i]) == all(int(logp[p].argmax()) == int(whole[0, p + 1]) for p in places)
        assert int(got.rank[i]) == int((logp[places[0]] > logp[places[0], whole[0, places[0] + 1]]).sum())


def test_divergences_are_those_of_the_definition():
    p, q = (torch.randn(4, 9, generator=torch.Generator().manual_seed(s)).log_softmax(-1) for s in (0, 1))
    got, a, b = compare(p, q), p.exp().double(), q.exp().double()
    m = (a + b) / 2
    torch.testing.assert_close(got["kl"], (a * (a / b).log()).sum(-1), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(got["js"], ((a * (a / m).log() + b * (b / m).log()) / 2).sum(-1), rtol=1e-5, atol=1e-7)
    entropies = [-(x * x.log()).sum(-1) for x in (a, b)]
    torch.testing.assert_close(got["entropy_change"], entropies[0] - entropies[1], rtol=1e-5, atol=1e-7)
    assert all(float(v.abs().max()) == 0 for v in compare(p, p).values())
    spike = torch.tensor([[0.0, -torch.inf]])
    assert float(compare(spike, torch.tensor([[0.5, 0.5]]).log())["kl"]) == pytest.approx(np.log(2))


# -- insertion ------------------------------------------------------------------------------------------------
def test_inserting_nothing_changes_nothing(found):
    ti.check(found)
    none = found.sel(n_fillers=0)
    for name in ("kl", "js", "flip", "entropy_change"):
        assert float(abs(none[name]).max()) == 0
    assert float(found["kl"].sel(n_fillers=10).min()) > 0


def test_insertion_does_not_depend_on_the_batches(bundled, found):
    again = insert(bundled, QUESTIONS, n_fillers=[2, 10], kinds=["dots", "words"], batch_tokens=1)
    for name in found.data_vars:
        np.testing.assert_allclose(again[name], found[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_every_item_is_compared_with_itself_without_fillers(bundled):
    """Few base items to a batch, which the longer ones have to be parted again."""
    asked = QUESTIONS[:5]
    ds = insert(bundled, asked, n_fillers=[40], kinds=["dots"], placements=["post"], announce="", batch_tokens=120)
    plain, items = (build_items(bundled, asked, n_fillers=k) for k in (0, 40))
    for i in range(5):
        p, q = (ask(bundled, pad(x, [i])).log_probs for x in (items, plain))
        assert ds["kl"].sel(n_fillers=40)[i].item() == pytest.approx(float(compare(p, q)["kl"]), rel=1e-3)


def test_tests_of_an_insertion(found):
    t = insertion_tests(found, n_boot=200)
    ti.check(t)
    change = (found["log_prob"] - found["log_prob"].sel(n_fillers=0)).mean("prompt")
    np.testing.assert_allclose(t["log_prob_change"], change)
    low, high = t["log_prob_change_interval"]
    assert ((low <= t["log_prob_change"]) & (t["log_prob_change"] <= high)).all()
    assert np.isnan(t["mcnemar_p"].sel(n_fillers=0)).all()
    made = found.isel(prompt=slice(5)).copy(deep=True)  # three helped and one hurt
    made["correct"].loc[{"n_fillers": 0}] = np.array([0, 0, 0, 1, 1])[:, None, None]
    made["correct"].loc[{"n_fillers": 2}] = np.array([1, 1, 1, 0, 1])[:, None, None]
    two = insertion_tests(made, n_boot=20).sel(n_fillers=2)
    for name, value in (("helped", 3), ("hurt", 1), ("mcnemar_p", 0.625)):
        assert (two[name] == value).all()
    special = change.sel(placement="post") - change.sel(placement="pre")
    np.testing.assert_allclose(t["placement_specificity"], special.transpose("filler", "n_fillers"))


def test_paired_tests():
    assert binomial(10, 0) == 2 / 2**10
    assert sign_test(np.array([1, 1, 0, np.nan, -1.0])) == 1.0
    assert spearman(np.arange(5), np.array([1, 4, 9, 16, 25])) == pytest.approx(1)
    assert spearman(np.arange(4), np.array([2, 1, 1, 0])) == pytest.approx(-0.9486833)
    assert np.isnan(spearman(np.arange(4), np.ones(4)))
    rng = np.random.default_rng(0)
    inside = [np.prod(interval(rng.normal(size=40), n_boot=400, seed=s) * [-1, 1] > 0) for s in range(60)]
    assert np.mean(inside) > 0.8


# -- stream and lens ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma3"])
def test_attribution_sums_to_the_logit(family):
    """U4: with the scale of the final norm frozen at its value, the terms of all layers sum to the logit."""
    from tokinterp.fillers.residual import attribute

    model = tiny(family)
    ids = torch.randint(3, 300, (5, 7), generator=torch.Generator().manual_seed(1))
    sites = ti.resid(range(4))
    got = model.run(ids, sites)
    h = torch.stack([got[s][:, -1] for s in sites], 1)
    target = torch.tensor([4, 9, 100, 250, 17])
    parts, constant, logit = attribute(model, h, target)
    with torch.no_grad():
        own = model.lm(ids).logits[:, -1].gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(logit.float(), own, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts.sum(1) + constant, logit, rtol=1e-4, atol=1e-4)
    if family == "llama":  # no bias: the last block's term from the stream alone
        scale = h[:, -1].pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()
        weight = model.lm.model.norm.weight * model.lm.lm_head.weight[target]
        torch.testing.assert_close(parts[:, -1].float(), ((h[:, 3] - h[:, 2]) * scale * weight).sum(-1).detach())


def test_a_soft_cap_is_refused():
    from tokinterp.fillers.residual import attribute

    with pytest.raises(ValueError, match="soft cap"):
        attribute(tiny("gemma2"), torch.randn(2, 4, 32) * 5, torch.tensor([4, 9]))


def test_shift_without_fillers_is_zero(bundled):
    ds = shift(bundled, QUESTIONS, n_fillers=[4])
    ti.check(ds)
    assert float(ds["shift"].sel(n_fillers=0).max()) == 0
    np.testing.assert_allclose(ds["cosine"].sel(n_fillers=0), 1, atol=1e-6)
    later = ds["shift"].sel(n_fillers=4, layer=bundled.info.n_layers).mean("prompt")
    assert float(ds["shift"].sel(layer=0).max()) == 0  # the token is the same
    assert (later > 0.01).all()
    assert list(ds["variant"].values) == list(VARIANTS)
    share = ds["bias_share"].sel(n_fillers=4).isel(layer=slice(1, None))
    assert ((share > 0) & (share <= 1)).all()
    np.testing.assert_allclose(ds["attribution"].sum("layer") + ds["constant"], ds["logit"], atol=1e-3)


def test_filler_states_split_their_variance(bundled):
    ds = filler_states(bundled, QUESTIONS, n_fillers=6)
    ti.check(ds)
    np.testing.assert_allclose(ds["variance_share"].sum("component"), 1, atol=1e-9)
    assert float(ds["variance_share"].sel(layer=0, component="item")) == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(ds["chance_share"].sum(), 1)
    assert float(ds["same_slot_cosine"].sel(layer=0)) == pytest.approx(1)


def test_probes_find_a_planted_code_and_no_shuffled_one():
    from tokinterp.fillers.residual import held_out

    g = torch.Generator().manual_seed(0)
    x = torch.randn(100, 8, generator=g).double()
    y = x @ torch.randn(8, 5, generator=g).double()
    fold = torch.arange(100) % 5
    unit = np.arange(100)
    value, low, high = share_explained(*held_out(x, y, fold, 5, 1e-6)[:2], unit)
    assert 0.999 < low <= value <= high <= 1
    value, low, high = share_explained(*held_out(x, y[torch.randperm(100, generator=g)], fold, 5, 1.0), unit)
    assert low <= value <= high
    assert value < 0.1


def test_probes_read_the_question_where_it_stands(bundled):
    ds = filler_probes(bundled, ti.bundled_questions("cloze")[:40], n_fillers=4)
    ti.check(ds)
    own = ds["explained"].sel(target="input", source="last of question", layer=0)
    assert float(own) > 0.5
    assert float(ds["explained"].sel(target="shuffled answer").max()) < 0.2


def test_lens_on_fillers(bundled):
    ds = read_fillers(bundled, QUESTIONS, n_fillers=4)
    ti.check(ds)
    assert ((ds["entropy"] >= 0) & (ds["entropy"] <= np.log(bundled.info.d_vocab) + 1e-6)).all()
    for name in ("own_share", "choice", "reciprocal_rank"):
        assert ((ds[name] >= 0) & (ds[name] <= 1)).all()
    answers = np.array([3, 3, 5, 6, 7, 7])
    for seed in range(20):
        assert (deranged(answers, seed) != answers).all()
        assert sorted(deranged(answers, seed)) == sorted(answers)


def test_cells_of_one_hidden_variable_cluster_together():
    """L5: two planted variables under other names in each cell, noise, and cells that compare with nothing."""
    rng = np.random.default_rng(0)
    hidden = rng.integers(0, 3, (2, 60))
    rows = [(rng.permutation(50)[hidden[v]]) for v in (0, 1, 0, 1, 0, 1)]
    noisy = [np.where(rng.random(60) < 0.1, rng.integers(0, 50, 60), r) for r in rows]
    labels = np.array([*noisy, np.full(60, 7), np.arange(60)])
    ami, cluster = cluster_cells(labels, 2)
    assert len(set(cluster[[0, 2, 4]])) == len(set(cluster[[1, 3, 5]])) == 1
    assert cluster[0] != cluster[1]
    assert cluster[6:].tolist() == [-1, -1]
    assert np.isnan(ami[6:]).all()
    assert abs(ami[0, 1]) < 0.15
    assert ami[0, 2] > 0.5
    with pytest.raises(ValueError, match="6 cells that can be compared"):
        cluster_cells(labels, 6)


def test_likeness_is_that_of_a_loop():
    from tokinterp.fillers.read_out import likeness

    ami = np.random.default_rng(0).random((6, 6))
    ami[2] = ami[:, 2] = np.nan
    cluster = [0, 1, -1, 0, 1, 1]
    cells = [(i, j) for i in range(6) for j in range(6) if i != j and -1 not in (cluster[i], cluster[j])]
    same = [ami[c] for c in cells if cluster[c[0]] == cluster[c[1]]]
    apart = [ami[c] for c in cells if cluster[c[0]] != cluster[c[1]]]
    assert likeness(ami, np.array(cluster)) == pytest.approx((np.mean(same), np.mean(apart)))


def test_cell_clusters_of_a_model(bundled, monkeypatch):
    from tokinterp.fillers import read_out

    given = []

    def cluster(labels, n_clusters, seed=0):
        given.append(labels.copy())
        return cluster_cells(labels, n_clusters, seed)

    monkeypatch.setattr(read_out, "cluster_cells", cluster)
    ds = cell_clusters(bundled, ti.bundled_questions("cloze")[:30], n_fillers=4, layers=[2, 6])
    ti.check(ds)
    known = ds["cluster"].values >= 0
    assert np.isfinite(ds["ami"].values[np.ix_(known, known)]).all()
    assert ds["cell_layer"].values.tolist() == [2] * 4 + [6] * 4
    assert float(ds["contrast"]) == pytest.approx(float(ds["within"]) - float(ds["between"]))
    low, high = ds["contrast_interval"].values
    assert low < float(ds["contrast"]) < high
    assert float(ds["contrast_shuffled"]) < float(ds["contrast"])
    plain, shuffled = given
    np.testing.assert_array_equal(np.sort(plain, 1), np.sort(shuffled, 1))  # each cell's labels over other items
    assert (plain != shuffled).any(1).all()
    one, two = read_out.likeness(*cluster_cells(shuffled, 3))
    assert float(ds["contrast_shuffled"]) == pytest.approx(one - two)
    items = build_items(bundled, ti.bundled_questions("cloze")[:30], n_fillers=4)
    where = torch.from_numpy(slots_of(items))
    states = [bundled.run(torch.from_numpy(ids)[None], ti.resid([2, 6])) for ids in items.ids]
    for cell, (layer, slot) in enumerate((n, s) for n in (2, 6) for s in range(4)):
        with torch.no_grad():
            h = torch.stack([x[ti.Site("resid", layer)][0, where[i, slot]] for i, x in enumerate(states)])
            p = bundled.unembed(h).softmax(-1)
        assert int(ds["n_labels"][cell]) == len((p - p.mean(0)).argmax(-1).unique())


def test_demonstrations_come_before_every_item(bundled):
    shown, asked = QUESTIONS[3:5], QUESTIONS[:3]
    ds = insert(bundled, asked, n_fillers=[4], kinds=["dots"], announce="", demonstrations=shown)
    plain = insert(bundled, asked, n_fillers=[4], kinds=["dots"], announce="")
    for k in (0, 4):
        items = build_items(bundled, asked, n_fillers=k, demonstrations=shown)
        answers = ask(bundled, pad(items, [0, 1, 2]))
        got = ds["log_prob"].sel(n_fillers=k, placement="post", filler="dots")
        np.testing.assert_allclose(got, answers.log_prob.cpu().numpy(), atol=1e-4)
        assert float(abs(got - plain["log_prob"].sel(n_fillers=k, placement="post", filler="dots")).max()) > 1e-2
    with pytest.raises(ValueError, match="demonstration"):
        verdict(bundled, asked, n_fillers=4, demonstrations=asked[:1])
    found = verdict(bundled, asked, n_fillers=4, n_boot=100, demonstrations=shown)
    assert found.attrs["verdict"] in ("used", "not shown")


def test_routing_is_made_of_attention_masses(bundled):
    """T6 against the patterns themselves."""
    asked = QUESTIONS[:3]
    ds = routing(bundled, asked, n_fillers=4)
    ti.check(ds)
    plain, items = (build_items(bundled, asked, n_fillers=k) for k in (0, 4))
    sites = [ti.Site("pattern", b) for b in range(bundled.info.n_layers)]
    i = 1
    (qa, qb), (fa, fb) = items.question[i], items.filler[i]
    with torch.no_grad():
        got = bundled.run(torch.from_numpy(items.ids[i])[None], sites)
        less = bundled.run(torch.from_numpy(plain.ids[i])[None], sites)
    reads = [float(got[s][0, :, fa:fb, qa:qb].sum(-1).mean()) for s in sites]
    asks = [float(got[s][0, :, -1, fa:fb].sum(-1).mean()) for s in sites]
    direct = [float(got[s][0, :, -1, qa:qb].sum(-1).mean()) for s in sites]
    before = [float(less[s][0, :, -1, qa:qb].sum(-1).mean()) for s in sites]
    np.testing.assert_allclose(ds["product"][i], np.multiply(reads, asks), rtol=1e-4)
    np.testing.assert_allclose(ds["direct_change"][i], np.subtract(direct, before), atol=1e-5)
    assert np.isnan(ds["routed"][:, 0]).all()
    assert float(ds["routed"][i, 3]) == pytest.approx(asks[3] * np.mean(reads[:3]), rel=1e-4)
    assert (ds["chance_change"] < 0).all()
    with pytest.raises(ValueError, match=r"n_fillers=0: give .* at least 1"):
        routing(bundled, asked, n_fillers=0)


def test_a_model_without_tokenizer_is_told_so():
    model = ti.wrap(tiny_lm("llama"))
    with pytest.raises(ValueError, match="has no tokenizer"):
        build_items(model, QUESTIONS)
