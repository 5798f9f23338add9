"""Edits change what they say and nothing else; hiding tokens equals deleting them."""

import json
import os
import subprocess
import sys

import pytest
import torch
from described_edits import described
from tiny import PARALLEL, byte_tokenizer, some_ids, some_prompts, tiny, tiny_lm

import tokinterp as ti
from tokinterp.run import edits as E
from tokinterp.settings.describe import describe

S = ti.Site
N = 3
T = 9
STREAM = [S("resid", n) for n in range(N + 1)]
FAMILIES = ["llama", "gpt2", "gemma2", "neox", "opt", "bloom", "mixtral", "falcon"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def sites_of(model):
    names = [n for n in ("attn_out", "resid_mid", "mlp_out") if n in model.offers]
    return [S("resid", 0), S("resid", 2), S("resid", N), *(S(n, b) for n in names for b in (0, 1))]


def run(model, edits=(), sites=STREAM, ids=None, **options):
    return model.run(some_ids(T) if ids is None else ids, sites, edits=edits, **options)


def vector(seed=0, *shape):
    return torch.randn(*shape, 32, generator=torch.Generator().manual_seed(seed))


# -- values at a site -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("op", ["replace", "add", "zero", "mean_ablate"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_edit_changes_its_place_and_only_what_follows(family, op, device):
    model = tiny(family, device)
    new = vector(1).to(device)
    positions = [4, 6]
    for site in sites_of(model):
        plain = run(model, sites=[*STREAM, site])
        value = plain[site]
        if op == "mean_ablate":
            edit, wanted = E.mean_ablate(site, positions), value.double().mean(1, keepdim=True).float().expand_as(value)
        elif op == "zero":
            edit, wanted = E.zero(site, positions), torch.zeros_like(value)
        elif op == "add":
            edit, wanted = E.add(site, new, positions), value + new
        else:
            edit, wanted = E.replace(site, new, positions), new.expand_as(value)
        after = run(model, [edit], [*STREAM, site])
        # the site shows its own edit, at the chosen positions and no others
        torch.testing.assert_close(after[site][:, positions], wanted[:, positions], **CLOSE)
        others = [p for p in range(T) if p not in positions]
        assert torch.equal(after[site][:, others], value[:, others]), (site, "other positions of the site")
        first = site.at if site.name == "resid" else site.at + 1  # first layer that can change
        for n in range(N + 1):
            a, b = after[S("resid", n)], plain[S("resid", n)]
            if n < first:
                assert torch.equal(a, b), (site, n, "an earlier layer changed")
            else:
                assert torch.equal(a[:, :4], b[:, :4]), (site, n, "an earlier position changed")
                assert not torch.allclose(a[:, 4], b[:, 4], atol=1e-3), (site, n, "nothing changed")
                if n == N and site != S("resid", N):
                    assert not torch.equal(a[:, 8], b[:, 8]), (site, "later positions do not see the edit")


@pytest.mark.parametrize("family", FAMILIES)
def test_edited_parts_still_add_up(family):
    """What is written into the stream is the edited value: layer, attention and MLP add up to the next layer."""
    model = tiny(family)
    mid = "resid_mid" in model.offers
    for name in ("resid", "attn_out", "mlp_out", *(["resid_mid"] if mid else [])):
        edit = E.replace(S(name, 1), vector(2), [3])
        sites = [*STREAM, S("attn_out", 1), S("mlp_out", 1), *([S("resid_mid", 1)] if mid else [])]
        a = run(model, [edit], sites)
        if name != "resid_mid":
            torch.testing.assert_close(a[STREAM[1]] + a[S("attn_out", 1)] + a[S("mlp_out", 1)], a[STREAM[2]], **CLOSE)
        if mid:
            torch.testing.assert_close(a[S("resid_mid", 1)] + a[S("mlp_out", 1)], a[STREAM[2]], **CLOSE)
        if name == "attn_out" and family not in PARALLEL:
            plain = run(model, sites=sites)
            assert not torch.equal(a[S("mlp_out", 1)][:, 3], plain[S("mlp_out", 1)][:, 3]), "the MLP did not see it"


@pytest.mark.parametrize("family", FAMILIES)
def test_own_value_is_the_identity(family):
    model = tiny(family)
    sites = sites_of(model)
    plain = run(model, sites=[*STREAM, *sites])
    for site in sites:
        after = run(model, [E.replace(site, plain[site])], STREAM)
        for n in range(N + 1):
            torch.testing.assert_close(after[S("resid", n)], plain[S("resid", n)], rtol=0, atol=0, msg=f"{site} {n}")
    nothing = run(model, [E.add(S("resid", 1), torch.zeros(32))], STREAM)
    assert torch.equal(nothing[STREAM[N]], plain[STREAM[N]])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_last_layer_edit_reaches_the_logits(family):
    model = tiny(family)
    new = vector(3)
    after = run(model, [E.replace(STREAM[N], new, [5])], [STREAM[N]])[STREAM[N]]
    logits = model.unembed(after)
    torch.testing.assert_close(logits[:, 5], model.unembed(new[None]).expand(2, -1), **CLOSE)
    with torch.no_grad():
        own = model.lm(some_ids(T)).logits
    torch.testing.assert_close(logits[:, :5], own[:, :5], **CLOSE)


def test_edit_of_a_layer_equals_running_from_it():
    """Replacing layer 1 by that of other ids gives, from there on, the run of those ids (rotary: no other input)."""
    model = tiny("llama")
    other = run(model, ids=some_ids(T, seed=5))
    after = run(model, [E.replace(STREAM[1], other[STREAM[1]])])
    for n in (1, 2, 3):
        assert torch.equal(after[STREAM[n]], other[STREAM[n]])
    assert not torch.equal(after[STREAM[0]], other[STREAM[0]])


def test_edits_work_in_the_order_given():
    model = tiny("llama")
    site, new = S("mlp_out", 1), vector(4)
    add, zero = E.add(site, new, [2]), E.zero(site, [2])
    plain = run(model, sites=[site])[site]
    assert not run(model, [add, zero], [site])[site][:, 2].any()
    assert torch.equal(run(model, [zero, add], [site])[site][:, 2], new.expand(2, -1))
    torch.testing.assert_close(run(model, [add, add], [site])[site][:, 2], plain[:, 2] + 2 * new, **CLOSE)
    # an earlier site acts on a later one
    both = run(model, [E.zero(S("resid", 1)), E.zero(S("attn_out", 1)), E.zero(site)], [STREAM[2]])
    assert not both[STREAM[2]].any()


def test_means_are_those_of_the_real_positions():
    model = tiny("llama")
    mask = torch.ones(2, T, dtype=torch.bool)
    mask[1, 5:] = False
    site = S("resid", 1)
    plain = run(model, sites=[site], mask=mask)[site]
    after = run(model, [E.mean_ablate(site)], [site], mask=mask)[site]
    torch.testing.assert_close(after[1, :5], plain[1, :5].mean(0).expand(5, -1), **CLOSE)
    assert torch.equal(after[1, 5:], plain[1, 5:]), "padding was edited"
    given = run(model, [E.mean_ablate(site, [1], mean=vector(5))], [site], mask=mask)[site]
    assert torch.equal(given[:, 1], vector(5).expand(2, -1))


# -- which positions ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("positions", "short", "long"),
    [
        (None, [0, 1, 2, 3, 4], list(range(9))),
        (3, [3], [3]),
        ([0, 7], [0], [0, 7]),
        (torch.tensor([1, 8]), [1], [1, 8]),
        (slice(2, 4), [2, 3], [2, 3]),
        (slice(-2, None), [3, 4], [7, 8]),
        (slice(None, -3), [0, 1], [0, 1, 2, 3, 4, 5]),
        (slice(-9, None, 4), [0, 4], [0, 4, 8]),
        (slice(1, 100, 3), [1, 4], [1, 4, 7]),
        (lambda ids, mask: mask.cumsum(1) == mask.sum(1, keepdim=True), [4], [8]),
        ([], [], []),
    ],
)
def test_positions_are_those_of_each_prompt(positions, short, long):
    ids = some_ids(T)
    mask = torch.ones(2, T, dtype=torch.bool)
    mask[1, 5:] = False
    chosen = E.select_positions(positions, ids, mask)
    assert chosen[0].nonzero()[:, 0].tolist() == long
    if not callable(positions) or positions is None:
        assert chosen[1].nonzero()[:, 0].tolist() == short
    # a slice means what it means in Python, whatever the padding
    if isinstance(positions, slice):
        assert long == list(range(9))[positions]
        assert short == list(range(5))[positions]


def test_numbered_positions_mean_the_same_in_every_batch():
    """A position that only longer prompts have is passed over in shorter ones, however the batches are cut."""
    prompts = some_prompts([12, 4, 9])
    site = S("resid", 2)
    edit = E.zero(site, [2, 8])
    whole = ti.capture(tiny(), prompts, [0, 1, 2], [site], [edit]).resid(2)
    for place in range(3):
        alone = ti.capture(tiny(), prompts, [place], [site], [edit]).resid(2)[0]
        torch.testing.assert_close(whole[place, : len(alone)], alone, **CLOSE)
    with pytest.raises(ValueError, match=r"positions=\[12\] to edit: the longest prompt has positions 0 to 11"):
        ti.capture(tiny(), prompts, [1], [site], [E.zero(site, 12)])
    steps = vector(7, 12)
    moved = ti.capture(tiny(), prompts, [1], [site], [E.replace(site, steps)]).resid(2)[0]
    assert torch.equal(moved, steps[:4])


# -- attention edges ------------------------------------------------------------------------------------------
def deletion(model, hidden, ids, mask=None):
    """Return (hidden by knock-out, deleted) at the kept positions of all layers."""
    keep = [p for p in range(ids.shape[1]) if p not in hidden]
    places = torch.zeros(ids.shape[1], dtype=torch.int64)
    places[keep] = torch.arange(len(keep))
    cut = model.run(ids, STREAM, edits=[E.knock_out(hidden)], position_ids=places.expand(len(ids), -1), mask=mask)
    gone = model.run(ids[:, keep], STREAM)
    return {s: a[:, keep] for s, a in cut.items()}, gone


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "neox", "neox_sequential", "opt", "gemma2", "mixtral", "qwen3", "phi"]
)
@pytest.mark.parametrize("hidden", [[3], [1, 4, 5], [0]])
def test_hiding_tokens_from_all_later_ones_equals_deleting_them(family, hidden, device):
    model = tiny(family, device)
    ids = some_ids(T).to(device)
    cut, gone = deletion(model, hidden, ids)
    plain = run(model, ids=ids)
    for site in STREAM:
        torch.testing.assert_close(cut[site], gone[site], rtol=1e-5, atol=1e-5, msg=f"{site}")
    keep = [p for p in range(T) if p not in hidden]
    assert float((gone[STREAM[N]] - plain[STREAM[N]][:, keep]).abs().max()) > 1e-2, "the tokens did not matter"


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
@pytest.mark.slow
def test_edits_are_the_same_in_every_backend(family, backend, tmp_path, extras):
    tiny_lm(family).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    hf = ti.load_model(tmp_path, device="cpu")
    other = ti.load_model(tmp_path, backend=backend, device="cpu")
    cut, gone = deletion(other, [1, 4, 5], some_ids(T))
    for site in STREAM:
        torch.testing.assert_close(cut[site], gone[site], **CLOSE)
    edits = [
        E.add(S("resid", 0), vector(1), [2]),
        E.replace(S("attn_out", 0), vector(2), [3]),
        E.zero(S("mlp_out", 1), slice(-2, None)),
        E.mean_ablate(S("resid", 2), [5]),
        E.knock_out([1], [4, 5], blocks=[1], heads=[0, 3]),
    ]
    if "resid_mid" in hf.offers:
        edits.append(E.add(S("resid_mid", 1), vector(3), [4]))
    sites = [*STREAM, S("attn_out", 0), S("mlp_out", 1), S("pattern", 1)]
    a, b = run(hf, edits, sites), run(other, edits, sites)
    for site in sites:
        torch.testing.assert_close(a[site], b[site], **CLOSE)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "neox", "opt", "bloom", "falcon", "mixtral"])
def test_knock_out_of_a_window_and_of_heads(family, device):
    model = tiny(family, device)
    sites = [*STREAM, *(S("pattern", b) for b in range(N))]
    plain = run(model, sites=sites)
    cut = run(model, [E.knock_out([1, 2], [5, 6], blocks=[1], heads=[0, 2])], sites)
    window = plain[S("pattern", 1)].clone()
    assert window[:, :, [5, 6]][..., [1, 2]].min() > 0
    got = cut[S("pattern", 1)]
    for head in range(4):
        if head in (0, 2):
            assert not got[:, head, [5, 6]][..., [1, 2]].any(), "a hidden key is seen"
            window[:, head, 5:7, 1:3] = 0
    window /= window.sum(-1, keepdim=True)  # the weights that are left keep their ratios
    torch.testing.assert_close(got, window, **CLOSE)
    torch.testing.assert_close(got.sum(-1), torch.ones_like(got.sum(-1)), **CLOSE)
    # eager and fused attention differ by roundings, so the plain run of the patterns is the reference
    assert torch.equal(cut[STREAM[1]], plain[STREAM[1]])
    assert torch.equal(cut[S("pattern", 0)], plain[S("pattern", 0)])
    assert torch.equal(cut[STREAM[2]][:, :5], plain[STREAM[2]][:, :5])
    assert not torch.allclose(cut[STREAM[2]][:, 5:7], plain[STREAM[2]][:, 5:7], atol=1e-4)
    assert torch.equal(cut[STREAM[2]][:, 7:], plain[STREAM[2]][:, 7:])
    assert not torch.equal(cut[STREAM[3]][:, 7:], plain[STREAM[3]][:, 7:])


def test_knock_outs_add_up_and_hide_nothing_if_empty():
    model = tiny("llama")
    pattern = S("pattern", 1)
    one, two = E.knock_out([1], [5]), E.knock_out([2], [5, 6], heads=[3])
    got = run(model, [one, two], [pattern])[pattern]
    assert not got[:, :, 5, 1].any()
    assert not got[:, 3, 5:7, 2].any()
    assert got[:, :3, 5:7, 2].min() > 0
    nothing = run(model, [E.knock_out([])], [pattern])[pattern]
    assert torch.equal(nothing, run(model, sites=[pattern])[pattern])


def test_edges_of_equal_blocks_are_held_once():
    model, ids = tiny("llama"), some_ids(T)
    cuts = model._cuts([E.knock_out([1], [5]), E.knock_out([2], [6], blocks=[0, 1])], ids, torch.ones_like(ids).bool())
    assert sorted(cuts) == [0, 1, 2]
    assert cuts[0] is cuts[1]
    assert (cuts[0][0, 0].sum(), cuts[2][0, 0].sum()) == (2, 1)


def test_knock_out_in_padded_batches():
    """Functions of the ids choose edges prompt by prompt; padding takes no part."""
    model = tiny("llama")
    ids = some_ids(T)
    mask = torch.ones(2, T, dtype=torch.bool)
    mask[1, 5:] = False
    edit = E.knock_out(slice(-3, -1), slice(-1, None))
    batched = model.run(ids, [STREAM[N]], mask=mask, edits=[edit])[STREAM[N]]
    alone = model.run(ids[1:, :5], [STREAM[N]], edits=[E.knock_out([2, 3], [4])])[STREAM[N]]
    torch.testing.assert_close(batched[1, :5], alone[0], **CLOSE)


def test_left_padded_masks_are_refused():
    mask = torch.ones(2, T, dtype=torch.bool)
    mask[1, :3] = False
    for wrong in (mask, mask.roll(4, 1)):  # padding first; padding between
        with pytest.raises(ValueError, match="not right padded"):
            run(tiny("llama"), mask=wrong)


def test_query_that_would_see_nothing_is_an_error():
    model = tiny("llama")
    with pytest.raises(
        ValueError, match=r"knock_out leaves position 2 of prompt 0 .* in block 1; leave it at least itself"
    ):
        run(model, [E.knock_out([0, 1, 2], [2], blocks=[1])])
    with pytest.raises(ValueError, match=r"position 0 of prompt 0 of the batch nothing to attend to in block 0"):
        run(model, [E.knock_out([0], [0], heads=[1])])
    run(model, [E.knock_out([0, 1, 2], [2], blocks=[1])], [STREAM[1]])  # block 1 is not run for layer 1


@pytest.mark.parametrize("family", ["bloom", "falcon"])
def test_position_ids_that_would_be_ignored_are_refused(family):
    """ALiBi counts places by itself; corrected position ids would silently change nothing."""
    changes = {"alibi": True} if family == "falcon" else {}
    model = ti.wrap(tiny_lm(family, **changes))
    places = torch.arange(T).expand(2, -1)
    with pytest.raises(ValueError, match=r"ignores position_ids .*ALiBi.*leave them out"):
        run(model, position_ids=places)
    run(tiny("falcon"), position_ids=places)


# -- refusals -------------------------------------------------------------------------------------------------
RESID = S("resid", 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: E.zero(RESID, [T]), r"positions=\[9\] to edit: the longest prompt has positions 0 to 8"),
        (lambda: E.zero(RESID, -1), r"positions=\[-1\]"),
        (lambda: E.zero(RESID, torch.ones(2, 4, dtype=torch.bool)), r"bool \(2, 4\): a bool tensor \(2, 9\)"),
        (lambda: E.zero(RESID, lambda ids, mask: ids), r"positions to edit are torch.int64"),
        (lambda: E.zero(RESID, slice(8, 2, -1)), r"the step must be at least 1"),
        (lambda: E.zero(S("resid", 4)), r"layer 4: tiny-llama has layers 0 to 3"),
        (lambda: E.zero(S("mlp_out", 3)), r"block 3: tiny-llama has blocks 0 to 2"),
        (lambda: E.zero(S("pattern", 1)), r"use knock_out"),
        (lambda: E.replace(RESID, torch.zeros(31)), r"value has shape \(31,\), but the site has width 32"),
        (lambda: E.add(RESID, torch.zeros(4, 32)), r"value has shape \(4, 32\).*up to 9 positions"),
        (lambda: E.add(RESID, torch.zeros(0)), r"value has shape \(0,\)"),
        (lambda: E.SiteEdit(RESID, "replace"), r"replace at resid 1 needs a value"),
        (lambda: E.SiteEdit(RESID, "halve"), r"op='halve': give one of 'replace', 'add', 'zero', 'mean'"),
        (lambda: E.knock_out([1], heads=[4]), r"heads \[4\]: the model has heads 0 to 3"),
        (lambda: E.knock_out([1], heads=[-1]), r"heads=\[-1\]"),
        (lambda: E.knock_out([1], blocks=[3]), r"block 3: tiny-llama has blocks 0 to 2"),
        (lambda: E.knock_out([9]), r"positions=\[9\]"),
        (lambda: "zero", r"edits=.*: give a list, each a SiteEdit or a KnockOut"),
    ],
)
def test_edits_that_do_not_fit_are_refused_before_the_model_runs(make, message):
    model = tiny("llama")
    blocks = []
    handle = model.lm.model.layers[0].register_forward_pre_hook(lambda *_: blocks.append(1))
    try:
        with pytest.raises((ValueError, TypeError), match=message):
            run(model, [make()], [STREAM[0]])
    finally:
        handle.remove()
    assert not blocks


def test_parallel_blocks_refuse_edits_between_attention_and_mlp():
    with pytest.raises(ValueError, match=r"resid_mid is not available for GPTNeoXForCausalLM.*in parallel"):
        run(tiny("neox"), [E.zero(S("resid_mid", 1))])


# -- what is recorded -----------------------------------------------------------------------------------------
@pytest.mark.slow
def test_descriptions_tell_edits_apart_and_are_the_same_in_every_process(pytestconfig):
    here = described()
    assert len({json.dumps(d) for d in here}) == len(here), "two different edits have the same fingerprint"
    code = "import json, described_edits; print(json.dumps(described_edits.described()))"
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300,
        cwd=pytestconfig.rootpath,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["tests", "."]), "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert json.loads(there.stdout) == json.loads(json.dumps(here))


def test_descriptions_of_things_that_hold_themselves_end():
    def again(n):
        return again(n - 1) if n else n

    loop = []
    loop.append(loop)
    assert E.zero(S("resid", 1), again).describe() == E.zero(S("resid", 1), again).describe()
    assert describe(loop) == describe(loop)


# -- scale, apply, patch --------------------------------------------------------------------------------------
def seen(prompts, edits=(), family="llama", numbers=None, layers=range(N + 1), name="resid"):
    sites = [S(name, n) for n in layers]
    batch = ti.capture(tiny(family), prompts, list(range(len(prompts))) if numbers is None else numbers, sites, edits)
    return {s.at: a.masked_fill(~batch.mask[..., None], 0) for s, a in batch.activations.items()}


def same_stream(a, b):
    for n in b:
        torch.testing.assert_close(a[n], b[n], rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_scale_of_0_is_zero_and_of_1_nothing(family):
    prompts = some_prompts([9, 6])
    for site in (S("resid", 1), S("mlp_out", 1), S("attn_out", 0), S("value", 1)):
        same_stream(seen(prompts, [E.scale(site, 0, [2, 3])], family), seen(prompts, [E.zero(site, [2, 3])], family))
        same_stream(seen(prompts, [E.scale(site, 1)], family), seen(prompts, (), family))
    half = seen(prompts, [E.scale(S("resid", 2), -0.5, [4])], family)[2]
    plain = seen(prompts, (), family)[2]
    assert torch.equal(half[:, 4], -0.5 * plain[:, 4])
    assert torch.equal(half[:, :4], plain[:, :4])


def test_apply_gives_what_the_function_makes_at_the_chosen_positions():
    prompts, plain = some_prompts([9, 6]), seen(some_prompts([9, 6]))
    same_stream(seen(prompts, [E.apply(S("resid", 1), lambda x: x)]), plain)
    way = vector(7) / vector(7).norm()

    def without(x):
        x -= (x @ way)[..., None] * way  # in place: the stream itself stays as it is elsewhere
        return x

    found = seen(prompts, [E.apply(S("resid", 1), without, [2])])
    torch.testing.assert_close(found[1][:, 2], plain[1][:, 2] - (plain[1][:, 2] @ way)[:, None] * way, **CLOSE)
    assert torch.equal(found[1][:, 3:], plain[1][:, 3:])
    assert torch.equal(found[3][:, :2], plain[3][:, :2])
    assert not torch.equal(found[3][:, 3:], plain[3][:, 3:])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x - x.mean(0), "other values for a prompt alone"), (lambda x: x[:1], "give back the same shape"),
        (lambda x: x + torch.randn(x.shape), "draw nothing"), (lambda x: x - x.mean(1, keepdim=True), "alone"),
        (lambda x: None, "same shape"),
    ],
)  # fmt: skip
def test_functions_that_look_beyond_a_prompt_are_refused(function, message):
    prompts = some_prompts([9, 9, 6])
    numbers = [2, 0] if message == "alone" else None  # padding counts in a mean over positions
    with pytest.raises(ValueError, match=f"function=.*{message}"):
        seen(prompts, [E.apply(S("resid", 1), function)], numbers=numbers)


@pytest.mark.parametrize("site", [S("resid", 1), S("mlp_out", 1), S("attn_out", 1), S("resid_mid", 1), S("key", 1)])
def test_patch_from_itself_changes_nothing(site):
    prompts = some_prompts([9, 6, 12])
    plain = seen(prompts)
    for donor, source in (([0, 1, 2], None), ({0: 0, 2: 2}, None), ([0, 1, 2], slice(2, 5))):
        found = seen(prompts, [E.patch(site, slice(2, 5), donor=donor, source=source)])
        for n in plain:
            torch.testing.assert_close(found[n], plain[n], rtol=1e-6, atol=1e-6)


def test_patch_of_all_positions_gives_the_donors_run_from_there_on():
    prompts = some_prompts([9, 9, 9, 12])
    plain = seen(prompts)
    found = seen(prompts, [E.patch(S("resid", 1), donor={0: 2, 3: 1}, positions=slice(0, 9))])
    assert torch.equal(found[0], plain[0])
    for n in (1, 2, 3):
        torch.testing.assert_close(found[n][0], plain[n][2], **CLOSE)
        torch.testing.assert_close(found[n][3, :9], plain[n][1, :9], **CLOSE)
        assert torch.equal(found[n][1:3], plain[n][1:3])
        assert not torch.allclose(found[n][0], plain[n][0], atol=1e-2)


def test_patch_takes_places_in_order_from_donors_of_any_length():
    prompts = some_prompts([5, 13, 8, 11])
    plain = seen(prompts)
    last = slice(-2, None)
    found = seen(prompts, [E.patch(S("resid", 2), last, donor=[1, 2, 3, 0], source=last)], numbers=[3, 0])
    for row, (own, donor) in enumerate(((3, 0), (0, 1))):
        n, m = prompts.lengths[own], prompts.lengths[donor]
        torch.testing.assert_close(found[2][row, n - 2 : n], plain[2][donor, m - 2 : m], **CLOSE)
        torch.testing.assert_close(found[2][row, : n - 2], plain[2][own, : n - 2], **CLOSE)
    one = seen(prompts, [E.patch(S("resid", 2), [1], donor=1, source=[12])])
    torch.testing.assert_close(one[2][:, 1], plain[2][1, 12].expand(4, -1), **CLOSE)


def test_patches_do_not_depend_on_batches_or_shares(tmp_path):
    prompts = some_prompts([9, 6, 12, 7, 10])
    flags = prompts.token_table()["position"] % 3 == 1
    edits = [
        E.patch(S("resid", 1), [1, 4], donor=[3, 4, 0, 1, 2]), E.zero(S("mlp_out", 2), [11]),
        E.scale(S("resid", 2), 2, flags),
    ]  # fmt: skip
    asked = {"c": ti.geometry.CosineSimilarity(), "n": ti.geometry.TokenNorms()}
    runs = [ti.measure(tiny(), prompts, asked, edits=edits, batch_tokens=n, progress=False) for n in (13, 4096)]
    for i in (0, 1):
        run = ti.measure(tiny(), prompts, asked, edits=edits, share=(i, 2), store=tmp_path / "a", progress=False)
    for found in (runs[0], run):
        for group in asked:
            for name, v in runs[1][group].data_vars.items():
                torch.testing.assert_close(
                    torch.tensor(found[group][name].values),
                    torch.tensor(v.values),
                    rtol=1e-4,
                    atol=1e-5,
                    equal_nan=True,
                )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"donor": 3}, "donor=3: there is no prompt 3"), ({"donor": [0]}, "1 donors for 3 prompts"),
        ({"donor": {0: -1}}, "no prompt -1"), ({"donor": 1}, "patched at position 6, but its donor 1 has 6"),
        ({"donor": 1, "positions": [1, 2], "source": [3]}, "has 2 positions to patch, but its donor 1 gives 1"),
        ({"donor": {1: 0}, "positions": [1], "source": [1, 2]}, "prompt 1 has 1 positions to patch.* gives 2"),
        ({"donor": 1, "positions": torch.ones(3, 9).bool()}, "fit one batch only"),
        ({"donor": 1, "source": torch.ones(3, 9).bool()}, "fit one batch only"),
    ],
)  # fmt: skip
def test_donors_that_do_not_fit_are_refused_before_the_run(options, message, monkeypatch):
    model, prompts = tiny(), some_prompts([9, 6, 12])
    norms = {"n": ti.geometry.TokenNorms()}
    edit = E.patch(S("resid", 1), **options)
    monkeypatch.setattr(type(model), "run", lambda *a, **o: pytest.fail("something was run"))
    with pytest.raises(ValueError, match=message):
        ti.measure(model, prompts, norms, edits=[edit], batch_tokens=12, progress=False)


def test_one_pass_alone_refuses_what_needs_a_run():
    with pytest.raises(ValueError, match="knows no prompts to take from"):
        run(tiny(), [E.patch(S("resid", 1), donor=0)])
    with pytest.raises(ValueError, match="which tokens of the run"):
        run(tiny(), [E.zero(S("resid", 1), torch.ones(T).bool())])


def test_words_of_the_new_edits():
    said = [E.scale(S("resid", 1), 2, [3]), E.apply(S("resid", 1), torch.relu), E.patch(S("resid", 1), 2, donor=4),
            E.patch(S("resid", 1), donor=[1, 0], source=slice(-1, None))]  # fmt: skip
    assert [str(e) for e in said] == [
        "scale(resid 1, by 2, positions 3)", "apply(resid 1, relu)", "patch(resid 1, positions 2, from prompt 4)",
        "patch(resid 1, from other prompts, there -1::)",
    ]  # fmt: skip


def test_one_number_is_a_value():
    model, prompts = tiny(), some_prompts([6, 4])
    site = ti.Site("mlp_out", 1)
    for made, same in ((ti.edits.replace(site, 0.0, [2]), ti.edits.zero(site, [2])),
                       (ti.edits.add(site, 0), ti.edits.scale(site, 1.0))):  # fmt: skip
        one, other = (ti.capture(model, prompts, sites=["resid.3"], edits=[e]).rows(3) for e in (made, same))
        torch.testing.assert_close(one, other)
    with pytest.raises(TypeError, match=r"site='resid': give a site, such as tokinterp.Site\('resid', 4\)"):
        ti.edits.replace("resid", 0.0)
    with pytest.raises(ValueError, match=r"the last token of each prompt is slice\(-1, None\)"):
        ti.capture(model, prompts, edits=[ti.edits.zero(site, -1)])
