"""Keep-masks: everything kept is the plain model, each policy keeps what it says, sizes match, sentinels."""

import numpy as np
import pytest
import torch
from by_hand import losses
from tiny import some_ids, some_prompts, tiny

import tokinterp as ti
from tokinterp.attention.masks import KeepOnly, Policy, default_policies, keep_only, policy_loss, separators_of
from tokinterp.run import edits as E

S = ti.Site
LAST = S("resid", 3)
ONES = torch.ones(1, 12, dtype=torch.bool)


@pytest.fixture(scope="module")
def prompts(bundled):
    return ti.Prompts.from_texts([t.text for t in ti.bundled_texts("story")[:3]], bundled, max_tokens=120)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral", "bloom"])
def test_everything_kept_is_the_plain_model_exactly(family):
    model, ids = tiny(family), some_ids(12)
    plain = model.run(ids, [LAST])[LAST]
    for policy in (Policy("all"), Policy("window", initial=0, window=12), Policy("window", initial=12, window=1)):
        assert torch.equal(model.run(ids, [LAST], edits=[keep_only(policy)])[LAST], plain)
    cut = model.run(ids, [LAST], edits=[keep_only(Policy("window", initial=1, window=2))])[LAST]
    torch.testing.assert_close(cut[:, :3], plain[:, :3], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(cut[:, 6:], plain[:, 6:], atol=1e-3)


def test_a_window_hides_what_knock_out_hides():
    model, ids = tiny("llama"), some_ids(12)
    keep = keep_only(Policy("window", initial=2, window=3), blocks=[1])
    by_hand = [E.knock_out([k], list(range(k + 3, 12)), blocks=[1]) for k in range(2, 9)]
    one, other = (model.run(ids, [LAST], edits=e)[LAST] for e in ([keep], by_hand))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_policies_keep_what_they_say():
    ids = torch.tensor([[0, 5, 6, 9, 7, 8, 9, 5, 6, 7, 9, 8]])
    marks = {3, 6, 10}
    for kind, extra in (("separators", marks), ("window", set())):
        keep = Policy(kind, 2, 3, separators=(9,))(ids, ONES)[0]
        for q in range(12):
            for k in range(12):
                expected = k <= q and (k < 2 or q - k < 3 or k in extra)
                assert bool(keep[q, k]) == expected, (kind, q, k)
    for kind in ("interval", "random"):
        policy = Policy(kind, 2, 3, separators=(9,), seed=3)
        assert int(policy.extra(ids, ONES).sum()) == 3
    place = Policy("interval", 2, 3, separators=(9,)).extra(ids, ONES)[0].nonzero()[:, 0]
    assert len(set(torch.diff(place).tolist())) == 1


def test_random_keys_depend_on_the_prompt_alone():
    """A prompt keeps the same random keys in any batch, and other ones with another seed."""
    one = some_ids(12, 1, seed=1)
    both = torch.nn.functional.pad(torch.cat([one, some_ids(12, 1, seed=2)]), (0, 4))
    mask = torch.ones_like(both, dtype=torch.bool)
    mask[:, 12:] = False
    ids = tuple(one[0, ::3].tolist())
    policy = Policy("random", 1, 2, ids, seed=5)
    alone = policy.extra(one, ONES)
    assert torch.equal(policy.extra(both, mask)[:1, :12], alone)
    others = [Policy("random", 1, 2, ids, seed=s).extra(one, ONES) for s in range(6)]
    assert any(not torch.equal(alone, o) for o in others)


def test_padding_is_never_kept():
    mask = ONES.clone()
    mask[:, 9:] = False
    keep = Policy("separators", 1, 2, (9,))(torch.full((1, 12), 9), mask)
    assert not keep[:, 9:].any()
    assert not keep[:, :, 9:].any()


@pytest.mark.slow
def test_sizes_of_the_controls_match(bundled, prompts):
    found = policy_loss(bundled, prompts, window=8)
    ti.check(found)
    kept = found["retention"].mean("prompt")
    full = float(kept.sel(policy="separators"))
    for name in ("random", "interval", "wider window"):
        assert float(kept.sel(policy=name)) == pytest.approx(full, rel=0.2)
    assert float(kept.sel(policy="window")) < 0.9 * full
    assert float(found["loss_change"].sel(policy="window").mean()) > 0
    assert list(found["policy"].values) == list(default_policies(prompts, separators_of(prompts)))


@pytest.mark.slow
def test_policy_loss_of_everything_is_zero_and_batches_do_not_matter(bundled, prompts):
    marks = separators_of(prompts)
    asked = {
        "all": Policy("all"),
        "separators": Policy("separators", 2, 6, marks),
        "random": Policy("random", 2, 6, marks),
    }
    one = policy_loss(bundled, prompts, asked)
    assert float(abs(one["loss_change"].sel(policy="all")).max()) == 0
    many = policy_loss(bundled, prompts, asked, batch_tokens=1)
    for name in one.data_vars:
        np.testing.assert_allclose(one[name], many[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_the_edit_works_in_a_measurement_and_is_described(bundled, prompts):
    edit = keep_only(Policy("window", 1, 8))
    cut = ti.measure(bundled, prompts, {"lens": ti.lens.LogitLens(top=0)}, edits=[edit], progress=False)
    plain = ti.measure(bundled, prompts, {"lens": ti.lens.LogitLens(top=0)}, progress=False)
    last = {"layer": bundled.info.n_layers}
    assert float((cut["lens"]["cross_entropy"] - plain["lens"]["cross_entropy"]).sel(last).mean()) > 0.01
    assert edit.describe() != keep_only(Policy("window", 1, 9)).describe()
    assert isinstance(edit, KeepOnly)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Policy("windows"), "kind='windows': give one of 'separators', 'window'"),
        (lambda: Policy("separators"), "needs the ids of separators"),
        (lambda: Policy("window", window=0), "window=0: give .* at least 1"),
        (lambda: policy_loss(tiny(), some_prompts([12]), {"w": Policy("window", 3, 256)}), "nothing would be hidden"),
        (lambda: policy_loss(tiny(), some_prompts([12]), {}), "policies={}: give at least 1"),
        (lambda: policy_loss(tiny(), ti.Prompts.from_ids([[1] + [100] * 20], tiny()), window=2), "no separator"),
    ],
)
def test_bad_policies(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_short_prompts_are_refused(bundled, prompts):
    with pytest.raises(ValueError, match="nothing would be hidden"):
        policy_loss(bundled, prompts, window=500)


def test_policy_loss_is_that_of_a_loop(long_model, marked_texts):
    marks = separators_of(marked_texts)
    policy = Policy("separators", 2, 4, marks)
    ds = policy_loss(long_model, marked_texts, {"kept": policy})
    for i in range(2):
        ids = np.asarray(marked_texts.ids(i))
        t = len(ids)
        keep = np.array([[k <= q and (k < 2 or q - k < 4 or ids[k] in marks) for k in range(t)] for q in range(t)])
        closed = [
            E.knock_out([k], [q for q in range(k, t) if not keep[q, k]]) for k in range(t) if not keep[k:, k].all()
        ]
        far = range(6, t - 1)
        change = (losses(long_model, ids, closed) - losses(long_model, ids))[list(far)]
        assert float(ds["loss_change"][i, 0]) == pytest.approx(change.mean(), abs=1e-4)
        assert float(ds["loss"][i]) == pytest.approx(losses(long_model, ids)[list(far)].mean(), rel=1e-5)
        assert float(ds["retention"][i, 0]) == pytest.approx(np.mean([keep[q, : q + 1].mean() for q in far]))
        assert int(ds["n_positions"][i]) == len(far)
    assert float(abs(ds["loss_change"]).min()) > 1e-4


def test_policies_are_compared_where_each_hides_something(long_model, marked_texts):
    narrow, wide = Policy("window", 1, 2), Policy("window", 2, 9)
    ds = policy_loss(long_model, marked_texts, {"narrow": narrow, "wide": wide, "all": Policy("all")})
    for i in range(2):
        ids = np.asarray(marked_texts.ids(i))
        t = len(ids)
        assert int(ds["n_positions"][i]) == t - 1 - 11
        for name, p in (("narrow", narrow), ("wide", wide)):
            closed = [E.knock_out([k], list(range(k + p.window, t))) for k in range(p.initial, t - p.window)]
            change = (losses(long_model, ids, closed) - losses(long_model, ids))[11:]
            assert float(ds["loss_change"].sel(policy=name)[i]) == pytest.approx(change.mean(), abs=1e-4)
        assert float(ds["loss"][i]) == pytest.approx(losses(long_model, ids)[11:].mean(), rel=1e-5)


def test_policies_without_separators_need_none():
    model = tiny()
    prompts = ti.Prompts.from_ids([[1, *range(100, 118)]], model)
    asked = {"all": Policy("all"), "window": Policy("window", 1, 4)}
    ds = policy_loss(model, prompts, asked)
    assert ds["loss_change"].sel(policy="all").item() == 0
    assert abs(ds["loss_change"].sel(policy="window").item()) > 1e-4
    assert policy_loss(model, prompts, {"all": Policy("all")})["retention"].item() == 1
    marks = (100,)
    ids = torch.as_tensor([[1, *range(100, 112)], [1, *range(200, 212)]])  # the second has none of them
    mask = torch.ones_like(ids).bool()
    for kind in ("separators", "interval", "random"):
        assert Policy(kind, 0, 1, marks).extra(ids, mask).sum(1).tolist() == [1, 0]


def test_a_wider_window_keeps_as_many_keys(long_model, marked_texts):
    made = default_policies(marked_texts, separators_of(marked_texts), 1, 5)
    kept = policy_loss(long_model, marked_texts, made)["retention"].mean("prompt")
    assert float(kept.sel(policy="wider window")) == pytest.approx(float(kept.sel(policy="separators")), rel=0.2)
    assert float(kept.sel(policy="window")) < float(kept.sel(policy="separators"))
