"""A pass with attention in sight: nothing changes, and no other model sees it."""

import pytest
import torch
from tiny import tiny_lm
from torch import nn

from tokinterp.models.attention.watch import Look, Watch, configured, cut_hook, implementation, show_hook, watching

IDS = torch.tensor([[1, 5, 9, 14, 20]])
REAL = torch.ones_like(IDS, dtype=torch.bool)


def attention(lm, block):
    return lm.model.layers[block].self_attn


@pytest.mark.parametrize("own", ["eager", "sdpa"])
@torch.no_grad()
def test_weights_are_shown_and_nothing_else_changes(own):
    lm = tiny_lm(attention=own)
    plain, seen = lm(IDS).logits, {}
    looks = {
        id(attention(lm, b)): Look(b, show=lambda w, heads, mixed, b=b: seen.update({b: (w, heads)})) for b in (0, 2)
    }
    with watching(lm, Watch(own, REAL, looks=looks)):
        torch.testing.assert_close(lm(IDS).logits, plain, rtol=0, atol=0)
    assert sorted(seen) == [0, 2]
    eager = tiny_lm(attention="eager")(IDS, output_attentions=True).attentions
    for block in seen:
        torch.testing.assert_close(seen[block][0], eager[block], rtol=1e-5, atol=1e-6)
    assert implementation(lm.config) == own


@torch.no_grad()
def test_heads_that_are_changed_and_edges_that_are_cut_act():
    lm = tiny_lm()
    plain = lm(IDS).logits
    where = id(attention(lm, 1))
    none = Look(1, change=lambda name, x: 0 * x if name == "value" else x)
    with watching(lm, Watch("sdpa", REAL, looks={where: none})):
        without = lm(IDS).logits
    assert not torch.allclose(without, plain)
    silent = tiny_lm()
    attention(silent, 1).o_proj.weight.zero_()
    torch.testing.assert_close(without, silent(IDS).logits)
    cut = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    cut[0, 0, 4, 2] = True
    with watching(lm, Watch("sdpa", REAL, looks={where: Look(1, cut=cut)})):
        found = lm(IDS).logits
    torch.testing.assert_close(found[:, :4], plain[:, :4])
    assert not torch.allclose(found[:, 4], plain[:, 4])


def test_configs_are_put_back_also_after_an_error():
    lm = tiny_lm()
    before = [m.__dict__.get("config") for m in lm.modules()]
    seen = []

    def fail():
        with configured(lm, "eager"):
            seen.append(attention(lm, 0).config._attn_implementation)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == ["eager"]
    assert all(a is b for a, b in zip(before, (m.__dict__.get("config") for m in lm.modules()), strict=True))


def test_hooks_of_modules_that_return_weights_or_take_masks():
    shown = []
    show_hook(lambda w, heads, mixed: shown.append((w, mixed)))(nn.Identity(), (), (IDS, REAL))
    show_hook(lambda *a: shown.append(a))(nn.Identity(), (), IDS)
    assert shown == [(REAL, IDS)]
    cut = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    cut[0, 0, 2, 1] = True
    hook = cut_hook(Look(0, cut=cut), 3, torch.ones(1, 3, dtype=torch.bool), "X")
    seen = torch.ones(3, 3, dtype=torch.bool).tril()[None, None]
    added = torch.zeros(1, 1, 3, 3).masked_fill(~seen, -1e38)
    for mask, opened in ((seen, lambda m: m), (~seen, lambda m: ~m), (added, lambda m: m > -1)):
        expected = seen & ~cut
        assert torch.equal(opened(hook(None, (), {"attention_mask": mask})[1]["attention_mask"]), expected)
        assert torch.equal(opened(hook(None, (IDS, mask), {})[0][1]), expected)
    with pytest.raises(ValueError, match="attention of X takes no 4-D mask"):
        hook(None, (IDS,), {"attention_mask": None})
