"""The hook engine: stops, leaves nothing behind, shows every site once."""

import pytest
import torch
from tiny import some_ids, tiny, tiny_lm

import tokinterp as ti
from tokinterp.models.modules import find_modules, submodule
from tokinterp.run.sites import INNER

S = ti.Site


N = 3  # blocks of every tiny model


EVERYWHERE = [S("resid", n) for n in range(N + 1)]


# A sum of three float32 parts in another order than the model's.
SUM = {"rtol": 1e-5, "atol": 1e-5}


def all_sites(model):
    inside = [S(name, b) for name in ("resid_mid", "attn_out", "mlp_out", "pattern", *INNER) for b in range(N)]
    return EVERYWHERE + [s for s in inside if s.name in model.offers]


def hooks_on(lm):
    return sum(
        len(getattr(m, kind))
        for m in lm.modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    )


@pytest.mark.parametrize("family", ["llama", "gemma2", "neox", "mixtral"])
def test_padding_on_the_right_changes_nothing(family):
    model = tiny(family)
    ids = some_ids(12)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 7:] = False
    acts = model.run(ids, EVERYWHERE, mask=mask)
    alone = model.run(ids[1:, :7], EVERYWHERE)
    for site in EVERYWHERE:
        torch.testing.assert_close(acts[site][1, :7], alone[site][0], **SUM)


# -- what is run, and what is left behind ---------------------------------------------------------------------
@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "opt"])
@pytest.mark.parametrize(
    ("site", "runs"),
    [(S("resid", 0), 0), (S("resid", 2), 2), (S("resid", 3), 3), (S("pattern", 1), 2), (S("mlp_out", 0), 1)],
)
def test_pass_stops_after_the_deepest_site(family, site, runs):
    lm = tiny_lm(family)
    model = ti.wrap(lm)
    counts = {"blocks": 0, "head": 0}

    def count(name):
        def hook(*_):
            counts[name] += 1

        return hook

    for block in submodule(lm, find_modules(lm).blocks):
        block.register_forward_pre_hook(count("blocks"))
    lm.get_output_embeddings().register_forward_pre_hook(count("head"))
    model.run(some_ids(), [S("resid", 0), site])
    assert counts == {"blocks": max(runs, 1 if site.at == 0 else runs), "head": 0}


def test_no_hook_is_left_behind():
    lm = tiny_lm("llama")
    model = ti.wrap(lm)
    assert hooks_on(lm) == 0
    model.run(some_ids(), all_sites(model), edits=[ti.edits.zero(S("resid", 1), [2]), ti.edits.knock_out([1])])
    assert hooks_on(lm) == 0

    def refuse(site, value):
        raise RuntimeError("refused by the reader")

    with pytest.raises(RuntimeError, match="refused by the reader"):
        model.run(some_ids(), [S("attn_out", 1)], consume=refuse)
    with pytest.raises(ValueError, match="nothing to attend to"):
        model.run(some_ids(), EVERYWHERE, edits=[ti.edits.knock_out([0], [0])])
    assert hooks_on(lm) == 0
    assert lm.config._attn_implementation == "sdpa"
    assert not model.run(some_ids(), [S("resid", 3)])[S("resid", 3)].requires_grad


def test_consume_sees_every_site_once_and_keeps_nothing():
    model = tiny("llama")
    ids = some_ids()
    seen = []
    sites = all_sites(model)
    out = model.run(ids, sites, consume=lambda site, value: seen.append((site, value)))
    assert out == {}
    assert sorted(s for s, _ in seen) == sorted(sites)
    kept = model.run(ids, sites)
    for site, value in seen:
        assert torch.equal(kept[site], value), site
