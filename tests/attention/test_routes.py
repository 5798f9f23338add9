"""Information flow routes: shares by hand in every family, planted heads, routes by another walk, refusals."""

import numpy as np
import pytest
import torch
from contract import assert_contract
from tiny import FAMILIES, PARALLEL, byte_tokenizer, some_prompts, tiny, tiny_lm

import tokinterp as ti
import tokinterp.attention.plots
from tokinterp.attention import InformationRoutes, route_graph
from tokinterp.attention.contributions import PARTS, Rule, Shares, block_shares
from tokinterp.kernels import attribution
from tokinterp.kernels.attribution import head_nearness, nearness, pruned
from tokinterp.plots import style
from tokinterp.run.stream import capture
from tokinterp.text.pieces import word_pieces

S = ti.Site
NO_PARTS = {"opt_post_norm"}
PROJECTION = {"gpt2": "c_proj", "opt": "out_proj", "neox": "dense", "neox_sequential": "dense", "phi": "dense",
              "gptj": "out_proj", "falcon": "dense", "bloom": "dense"}  # fmt: skip


def vectors(*rows):
    return torch.tensor(rows, dtype=torch.float64)


# -- kernels --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("norm", "total", "parts", "expected"),
    [
        (1, [1, 1], [[1, 1], [0, 0]], [1, 0]),
        (2, [2, 2], [[2, 1], [1, 1], [-1, 0]], [0.56387, 0.43613, 0]),
        (2, [-10, 10], [[0, 1], [1, 0], [-21, -1], [10, 10]], [1, 0, 0, 0]),
        (2, [4, 4], [[1, 1], [2, 2], [1, 1]], [0.25, 0.5, 0.25]),
    ],
)
def test_shares_are_those_of_the_known_cases(norm, total, parts, expected):
    near = nearness(vectors(*[total] * len(parts)), vectors(*parts), norm)
    np.testing.assert_allclose(near / near.sum(), expected, atol=1e-4)


def test_what_is_not_above_the_threshold_is_taken_away_before_the_rest_sums_to_one():
    blocks, resid = vectors([0.05, 0.15], [0.05, 0.05]), vectors([0.8], [0.9])
    found = pruned(torch.cat([blocks, resid], 1), 0.1)
    np.testing.assert_allclose(found, [[0, 0.157894, 0.842105], [0, 0, 1]], atol=1e-6)
    assert pruned(torch.full((2, 3), 1 / 3), 0.5).tolist() == [[0, 0, 0]] * 2
    assert pruned(torch.tensor([torch.nan, torch.nan]), 0.1).isnan().all(), "not finite, which is not nothing"


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("budget", [1, 90, 2**20])
def test_nearness_of_heads_is_that_of_each_part_alone(norm, budget, monkeypatch):
    monkeypatch.setattr(attribution, "NUMBERS", {"cpu": budget})
    draw = torch.Generator().manual_seed(0)
    total, written = torch.randn(2, 5, 7, generator=draw), torch.randn(2, 3, 5, 7, generator=draw)
    pattern = torch.rand(2, 3, 5, 5, generator=draw).tril()
    found = head_nearness(total, pattern, written, norm)
    for p, h, i, j in np.ndindex(2, 3, 5, 5):
        y, z = total[p, i].double(), (pattern[p, h, i, j] * written[p, h, j]).double()
        expected = max(float(y.norm(p=norm) - (y - z).norm(p=norm)), 1e-5) if j <= i else 0
        assert float(found[p, h, i, j]) == pytest.approx(expected, abs=2e-6)


# -- blocks ---------------------------------------------------------------------------------------------------
@torch.no_grad()
def by_hand(model, family, ids, b, parallel):
    """Shares of one block, part by part, from the model's own weights."""
    sites = [S(n, b) for n in PARTS]
    x, value, pattern, out, mlp = (model.run(ids, sites)[s][0].double() for s in sites)
    block = model._blocks[b]
    names = ("self_attn", "attn", "attention", "self_attention")
    attn = next(m for n in names if (m := getattr(block, n, None)) is not None)
    projection = getattr(attn, PROJECTION.get(family, "o_proj"))
    weight = projection.weight.double() if family == "gpt2" else projection.weight.double().T
    bias = torch.zeros(32).double() if getattr(projection, "bias", None) is None else projection.bias.double()
    heads, n = pattern.shape[:2]
    v = value.reshape(n, -1, weight.shape[0] // heads)
    parts = torch.zeros(n, heads, n, 32).double()
    for i, h, j in np.ndindex(n, heads, n):
        group = h * v.shape[1] // heads
        parts[i, h, j] = pattern[h, i, j] * (v[j, group] @ weight.reshape(heads, -1, 32)[h])
    if family in ("gemma2", "gemma3", "olmo2"):
        raw = parts.sum((1, 2)) + bias
        norm = block.post_attention_layernorm
        gain = (1 + norm.weight if family.startswith("gemma") else norm.weight).double()
        scale = gain / (raw.square().mean(-1, keepdim=True) + getattr(norm, "eps", 1e-6)).sqrt()
        parts, bias = parts * scale[:, None, None], bias * scale
    np.testing.assert_allclose((parts.sum((1, 2)) + bias).detach(), out, atol=2e-4)
    y = x + out + (mlp if parallel else 0)
    found = torch.zeros(n, heads, n).double()
    for i, h, j in np.ndindex(n, heads, n):
        if j <= i:
            found[i, h, j] = max(float(y[i].abs().sum() - (y[i] - parts[i, h, j]).abs().sum()), 1e-5)
    others = [x, *([bias.expand(n, 32)] if bool(bias.any()) else []), *([mlp] if parallel else [])]
    rest = torch.stack([(y.abs().sum(1) - (y - z).abs().sum(1)).clamp_min(1e-5) for z in others], 1)
    whole = found.sum((1, 2)) + rest.sum(1)
    return (found / whole[:, None, None]).detach(), (rest / whole[:, None]).detach()


def check_shares(model, family, parallel):
    """Compare with the shares by hand, and the sum of all parts with the stream."""
    batch = capture(model, some_prompts([9], model=model), [0], [S(n, 1) for n in PARTS])
    found = block_shares(batch, 1, {n: batch.activations[S(n, 1)] for n in PARTS}, Rule())
    heads, rest = by_hand(model, family, batch.ids, 1, parallel)
    np.testing.assert_allclose(found.heads[0].transpose(0, 1), heads, atol=2e-5)
    np.testing.assert_allclose(found.resid[0], rest[:, 0], atol=2e-5)
    assert (found.through is None) == parallel
    total = found.heads.sum((1, 3)) + found.resid + found.bias
    if parallel:
        total = total + found.mlp
    else:
        assert torch.allclose(found.mlp + found.through, torch.ones(1, 9))
    np.testing.assert_allclose(total, 1, atol=1e-5)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_of_every_family_are_those_by_hand_or_are_refused(family):
    model = tiny(family)
    if family in NO_PARTS:
        asked = {"r": InformationRoutes(sizes=None)}
        with pytest.raises(ValueError, match=r"site attn_out is not available .* do not add these parts to the stream"):
            ti.measure(model, some_prompts([9], model=model), asked, progress=False)
        return
    found = check_shares(model, family, family in PARALLEL)
    biased = ("gpt2", "neox", "neox_sequential", "opt", "phi", "bloom")
    assert (float(found.bias.max()) > 0) == (family in biased)


@pytest.mark.parametrize(
    ("changes", "parallel"),
    [
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, True),
        ({"multi_query": False, "bias": True}, True),
        ({"multi_query": False, "parallel_attn": False}, False),
        ({"alibi": True, "multi_query": False, "parallel_attn": False}, False),
    ],
)
def test_shares_of_other_falcons_are_those_by_hand(changes, parallel):
    """Grouped values and two norms, one norm shared by attention and MLP, one after the other, ALiBi."""
    model = ti.wrap(tiny_lm("falcon", **changes), byte_tokenizer(), id="falcon")
    found = check_shares(model, "falcon", parallel)
    assert (float(found.bias.max()) > 0) == ("bias" in changes)


def test_without_a_bias_of_its_own_the_others_share_the_whole():
    model = tiny("gpt2")
    batch = capture(model, some_prompts([9], model=model), [0], [S(n, 0) for n in PARTS])
    found = {n: batch.activations[S(n, 0)] for n in PARTS}
    plain, without = (block_shares(batch, 0, found, Rule(bias=b)) for b in (True, False))
    assert float(without.bias.abs().max()) == 0
    np.testing.assert_allclose(without.resid, plain.resid / (1 - plain.bias), rtol=1e-5)


def test_what_is_not_the_sum_of_its_heads_is_refused():
    model = tiny()
    edits = [ti.edits.scale(S("attn_out", 1), 0.5)]
    with pytest.raises(ValueError, match=r"block 1 of LlamaForCausalLM: what its heads write differs by 1 from what"):
        ti.measure(model, some_prompts([9]), {"r": InformationRoutes(sizes=None)}, edits=edits, progress=False)


# -- the measurement ------------------------------------------------------------------------------------------
def test_routes_keep_the_contract():
    ds = assert_contract(lambda: InformationRoutes(sizes=None, tokens=None))
    assert {"merge", "n_words"}.isdisjoint(ds.data_vars)
    np.testing.assert_allclose(ds["share"].sum("head") + ds["resid_share"] + ds["bias_share"], 1, atol=1e-5)
    last = ds["on_route"].isel(layer=-1).values
    expected = [np.mean([1 / (t + 1) for t in range(1, n)]) for n in (22, 30, 17, 30, 25, 19, 28)]
    np.testing.assert_allclose(last, expected)


def planted(**heads):
    """A batch of one prompt, and shares in which some heads give all to one place."""
    model = tiny()
    texts = ["the river to the sea and the river to the king bring the sting"]
    prompts = ti.Prompts.from_texts(texts, model)
    m = InformationRoutes(sizes=(2, 3), min_position=1)
    m.begin(model.info, prompts)
    batch = capture(model, prompts, [0], [S("resid", 0)])
    n = batch.ids.shape[1]
    given = torch.zeros(1, 4, n, n)
    for h, place in enumerate(heads.values()):
        for i in range(n):
            if 0 <= place(i) <= i:
                given[0, h, i, place(i)] = 0.5
    half = torch.full((1, n), 0.5)
    return m, batch, m._reduce(batch, Shares(given, half, 0 * half, half, half))


def test_a_planted_previous_token_head_is_found_and_others_are_not():
    _, _, found = planted(before=lambda i: i - 1, two=lambda i: i - 2, first=lambda i: 0, own=lambda i: i)
    previous, control = found[4][0, 2], found[4][0, 3]
    np.testing.assert_allclose(previous, [0.5, 0, 0, 0])
    assert float(control[1]) > 0
    np.testing.assert_allclose(control[[0, 2, 3]], 0)
    np.testing.assert_allclose(found[4][0, 1], found[4][0, 0], err_msg="all of it lies above the threshold")


def test_a_planted_merging_head_is_found_in_words_and_not_in_their_control():
    model = tiny()
    texts = ["the river to the sea and the river to the king bring the sting in the and the to the river"]
    prompts = ti.Prompts.from_texts(texts, model)
    m = InformationRoutes(sizes=(2, 3), min_position=1)
    run = ti.measure(model, prompts, {"r": m}, progress=False)["r"].to_dataset()
    table = {}
    for p, query, size, control in word_pieces(prompts, (2, 3), 1).tolist():
        table.setdefault((size, control), []).append((p, query))
    counts = [run[n].sel(pieces=size).item() for size in (2, 3) for n in ("n_words", "n_control")]
    assert counts == [len(table.get((size, c), [])) for size in (2, 3) for c in (0, 1)]
    graph = capture(model, prompts, [0], [S(n, 2) for n in PARTS])
    heads = block_shares(graph, 2, {n: graph.activations[S(n, 2)] for n in PARTS}, Rule()).heads[0]
    for (size, control), rows in table.items():
        expected = np.mean([[float(heads[h, q, q - size + 1 : q].sum()) for h in range(4)] for _, q in rows], 0)
        got = run["merge_control" if control else "merge"].sel(prompt=0, pieces=size, block=2)
        np.testing.assert_allclose(got, expected, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "phi"])
@pytest.mark.parametrize("renormalise", [False, True])
def test_routes_are_those_of_another_walk(family, renormalise):
    model, threshold = tiny(family), 0.06
    prompts = some_prompts([12, 7], model=model)
    asked = InformationRoutes(threshold, renormalise=renormalise, sizes=None)
    ds = ti.measure(model, prompts, {"r": asked}, progress=False)["r"].to_dataset()
    rule = Rule(threshold=threshold, renormalise=renormalise)
    used, on = np.zeros((3, 4)), np.zeros((11, 4))
    batch = capture(model, prompts, [0], [S(n, b) for b in range(3) for n in PARTS])
    shares = [block_shares(batch, b, {n: batch.activations[S(n, b)] for n in PARTS}, rule) for b in range(3)]
    least = 0 if renormalise else threshold
    for row, target in enumerate(range(1, 12)):
        nodes, heads_used = {target}, set()
        on[row, 3] = 1 / (target + 1)
        for b in (2, 1, 0):
            s, below = shares[b], set()
            for i in nodes:
                mlp = float(s.mlp[0, i]) > least
                if family == "phi":
                    below |= {i} if mlp else set()
                elif not mlp and not float(s.through[0, i]) > least:
                    continue
                heads_used |= {(b, h) for h in range(4) if (s.heads[0, h, i] > least).any()}
                weight = s.heads[0, :, i].sum(0)
                weight[i] += s.resid[0, i]
                below |= set(np.flatnonzero(weight.numpy() > least).tolist())
            nodes = below
            on[row, b] = len(nodes) / (target + 1)
        for b, h in heads_used:
            used[b, h] += 1 / 11
    np.testing.assert_allclose(ds["activation"].sel(prompt=0), used, atol=1e-6)
    np.testing.assert_allclose(ds["on_route"].sel(prompt=0), on.mean(0), atol=1e-6)
    graph = route_graph(model, prompts, threshold=threshold, renormalise=renormalise)
    places = np.arange(12) + 1
    for b in range(4):
        mine = graph["on_route"].values[:12, b].sum()
        assert mine == pytest.approx(on[-1, b] * places[-1])


def test_a_token_of_which_nothing_is_above_the_threshold_has_no_edges():
    model = tiny()
    prompts = some_prompts([10])
    ds = ti.measure(model, prompts, {"r": InformationRoutes(0.99, renormalise=True, sizes=None)}, progress=False)[
        "r"
    ].to_dataset()
    assert ds["importance"].notnull().all()
    assert float(ds["importance"].max()) == 0
    graph = route_graph(model, prompts, threshold=0.99, renormalise=True)
    assert graph.sizes["edge"] == 0
    ti.check(graph)


# -- the graph ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["llama", "neox"])
def test_edges_of_a_graph_hang_together(family):
    model = tiny(family)
    prompts = some_prompts([9, 12], model=model)
    ds = route_graph(model, prompts, [5, 11], threshold=0.03)
    ti.check(ds)
    for p, target in ((0, 5), (1, 11)):
        one = ds.isel(edge=np.flatnonzero(ds["edge_prompt"].values == p))
        reached = {("resid.3", target)}
        for n in range(one.sizes["edge"]):  # downwards
            e = one.isel(edge=n)
            to = (e["to_site"].item(), int(e["to_position"]))
            assert to in reached or to[0].startswith("mlp_out"), to
            reached.add((e["from_site"].item(), int(e["from_position"])))
        assert one["weight"].values.min() > 0.03
        crossing = one["from_position"].values != one["to_position"].values
        assert (one["head"].values[crossing] >= 0).all()
        assert (one["from_position"].values <= one["to_position"].values).all()
        middle = {s for s in one["to_site"].values if s.startswith("resid_mid")}
        assert bool(middle) == (family == "llama")


def test_a_graph_of_what_is_not_there_is_refused():
    prompts = some_prompts([9, 12])
    with pytest.raises(ValueError, match=r"targets: position 9 of prompt 0, which has positions 0 to 8"):
        route_graph(tiny(), prompts, [9, 3])
    with pytest.raises(ValueError, match=r"targets: 1 for 2 prompts: give one position for each"):
        route_graph(tiny(), prompts, [9])
    with pytest.raises(ValueError, match=r"threshold=1\.5: give a number"):
        route_graph(tiny(), prompts, threshold=1.5)


def test_a_graph_is_drawn_with_its_tokens_and_heads():
    model = tiny()
    ds = route_graph(model, ti.Prompts.from_texts(["the river to the sea"], model), threshold=0.02)
    drawn = {p.name: p for p in ti.plots.draw(ds)}
    (ax,) = [a for a in drawn["route"].figure.axes if a.get_ylabel() == "layer"]
    shown = [t.get_text() for t in ax.texts]
    crossing = (ds["from_position"].values != ds["to_position"].values).sum()
    assert len(shown) == min(10, crossing) > 0
    (lines,) = [c for c in ax.collections if hasattr(c, "get_segments")]
    via = ["mlp_out" in f"{a} {b}" for a, b in zip(ds["from_site"].values, ds["to_site"].values, strict=True)]
    assert len(lines.get_segments()) == len(via) - sum(via)
    with pytest.raises(ValueError, match="prompt=3: the result has prompts"):
        ti.attention.plots.draw_route(ds, 3)


def test_the_end_of_a_long_text_is_drawn_with_its_tokens():
    ds = route_graph(tiny(), some_prompts([60]), threshold=0.02)
    target = ds["target"].item()
    assert target > 55  # further on than what is drawn of a text by default
    ax = ti.attention.plots.draw_route(ds)
    text = dict(zip(ds["position"].values.tolist(), ds["text"].values.tolist(), strict=True))
    assert ax.get_xticklabels()[-1].get_text() == style.shown(text[target])
    used = {*ds["from_position"].values.tolist(), target}
    first = min(
        p for p in range(target + 1) if len({*range(p, target + 1)} & {*used, *range(target - 23, target)}) <= 48
    )
    left = sum(p < first for p in used)
    assert left > 0
    assert ax.get_xlabel() == f"not drawn: {left} tokens of the route, before position {first}"
    whole = route_graph(tiny(), some_prompts([20]), threshold=0.02)
    assert ti.attention.plots.draw_route(whole).get_xlabel() == ""


def test_a_model_without_a_projection_that_fits_is_refused_in_one_line(monkeypatch):
    model = ti.wrap(tiny_lm("llama"), id="odd")
    monkeypatch.setattr(model.attention, "output", None)
    with pytest.raises(ValueError, match=r"no output projection of attention was found .* what its heads write"):
        ti.measure(model, some_prompts([9], model=model), {"r": InformationRoutes(sizes=None)}, progress=False)
