"""States that are equal up to rounding count once, wherever clouds, directions, steps or maps are looked at."""

import numpy as np
import pytest
import torch
from tiny import tiny

import tokinterp as ti
from tokinterp.kernels.rounding import rounding, settle

EPS = float(torch.finfo(torch.float32).eps)


def cloud(n, d, seed=0):
    return torch.randn(1, n, d, generator=torch.Generator().manual_seed(seed))


def by_hand(x, mask, computed):
    """Each point becomes the first that pairs closer than the rounding join it to, pair by pair."""
    n, near = len(x), rounding(x, computed).double()
    first = list(range(n))
    for _ in range(n):
        for i in range(n):
            for j in range(n):
                apart = float((x[i].double() - x[j].double()).norm())
                if mask[i] and mask[j] and apart <= (near[i] + near[j]) / 2:
                    first[i] = first[j] = min(first[i], first[j])
    return x[first]


@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16, torch.float64])
def test_groups_are_those_of_all_pairs(computed):
    x = cloud(14, 6)[0].to(computed)
    unit = rounding(x, computed)[:, None].to(computed)
    direction = torch.nn.functional.normalize(cloud(14, 6, 1)[0], dim=-1).to(computed)
    x[5], x[9], x[13] = x[2] + 0.7 * unit[2] * direction[2], x[2] - 0.7 * unit[2] * direction[2], x[7]  # 5 and 9: by 2
    x[11] = x[3] + 3 * unit[3] * direction[3]  # too far
    mask = torch.ones(1, 14, dtype=torch.bool)
    found = settle(x[None], mask, computed)[0]
    assert torch.equal(found, by_hand(x, mask[0], computed))
    assert torch.equal(found[5], x[2])
    assert torch.equal(found[9], x[2])
    assert not torch.equal(found[11], x[3])


def test_nothing_is_copied_where_nothing_is_equal_up_to_rounding():
    x = cloud(40, 8)
    x[0, 7] = x[0, 3]  # equal in every bit is nothing to settle
    mask = torch.ones(1, 40, dtype=torch.bool)
    assert settle(x, mask, torch.float32) is x
    close = x.clone()
    close[0, 9] = x[0, 3] * (1 + 4 * EPS)
    mask[0, 9] = False
    assert settle(close, mask, torch.float32) is close  # what does not count joins nothing
    mask[0, 9] = True
    found = settle(close, mask, torch.float32)
    assert torch.equal(found[0, [7, 9]], x[0, [3, 3]])
    assert settle(x[:, :1], mask[:, :1], torch.float32).shape == (1, 1, 8)


def test_a_common_offset_and_not_finite_rows_are_no_reason_to_join():
    x = cloud(200, 16) + 1000.0  # neighbours are 1,000 times closer than the rows are long
    x[0, 4], x[0, 5] = torch.nan, torch.inf
    mask = torch.ones(1, 200, dtype=torch.bool)
    assert settle(x, mask, torch.float32) is x


@pytest.fixture(scope="module")
def repeated():
    """Two prompts of one token each, repeated, and a text: by a model with causal attention each is one state."""
    model = tiny("llama")
    return model, ti.Prompts.from_ids([[5] * 60, [9] * 60])


def noise(model, prompts):
    batch = ti.capture(model, prompts, [0, 1], ti.resid([1, 2, 3]))
    return [float((batch.resid(n) - batch.resid(n)[:, :1]).abs().max()) for n in (1, 2, 3)]


def test_a_repeated_token_is_one_point_and_has_no_geometry(repeated):
    model, prompts = repeated
    assert max(noise(model, prompts)) > 0  # the states differ in their last digits: what the rest is about
    asked = {
        "dimension": ti.geometry.IntrinsicDimension((2, 4), k=5, small="nan"),
        "graph": ti.geometry.NeighbourGraph(k=(1, 5), small="nan"),
        "overlap": ti.geometry.NeighbourOverlap(k=(1, 10), labels=()),
        "imbalance": ti.geometry.InformationImbalance(k=(1,)),
        "cosine": ti.geometry.CosineSimilarity(angles=True),
        "curvature": ti.geometry.Curvature(depth=False),
        "linearity": ti.linearity.Linearity(exclude=()),
        "nonlinearity": ti.linearity.TokenNonlinearity(fit="prompt", exclude=()),
        "entropy": ti.geometry.MatrixEntropy(),
        "recall": ti.memory.PrefixRecall(n_words=4),
    }
    run = {k: n.to_dataset() for k, n in ti.measure(model, prompts, asked, progress=False).children.items()}
    d = run["dimension"]
    assert (d["n_unique"] == 1).all()
    assert (d["refused"] == 1).all()
    assert not run["graph"]["reciprocity"].notnull().any()
    for group, names in {
        "dimension": ("dimension", "dimension_mle", "dimension_twonn"), "cosine": ("cosine_centred", "angle"),
        "curvature": ("curvature", "curvature_absolute"), "nonlinearity": ("nonlinearity",),
        "linearity": ("linearity", "linearity_adjusted", "linearity_held_out", "linearity_without_residual",
                      "linearity_without_residual_held_out", "rotation_similarity"),
    }.items():  # fmt: skip
        for name in names:
            assert run[group][name].isnull().all(), name
    assert (run["linearity"]["refused"] == 1).all()
    assert (run["linearity"]["n_distinct"] == 2).all()
    overlap = run["overlap"]  # copies share their places: chance, and all of them copies
    np.testing.assert_allclose(overlap["overlap"], overlap["chance"].broadcast_like(overlap["overlap"]), rtol=1e-6)
    assert (overlap["n_copies"] == 59).all()
    np.testing.assert_allclose(run["imbalance"]["imbalance_forward"], 1)
    np.testing.assert_allclose(run["entropy"]["prompt_effective_rank"], 1, rtol=1e-6)
    np.testing.assert_allclose(run["recall"]["explained"].fillna(0), 0, atol=1e-9)


def test_a_run_of_one_token_at_the_start_counts_once(repeated):
    """Without BOS the states of a run that begins a text are equal; as many copies must not move the estimate."""
    model, _ = repeated
    rest = torch.randint(0, 300, (50,), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = ti.Prompts.from_ids([[7] * 10 + rest])
    asked = {"d": ti.geometry.IntrinsicDimension((2, 4), k=5, small="nan", exclude=(), layers=[1, 2, 3])}
    found = ti.measure(model, prompts, asked, progress=False)["d"].to_dataset()
    assert (found["n_removed"] == 9).all()
    batch = ti.capture(model, prompts, [0], ti.resid([1, 2, 3]))
    from tokinterp.geometry.kernels.gride import gride
    from tokinterp.kernels.neighbours import nearest

    for i, layer in enumerate((1, 2, 3)):
        x = batch.resid(layer)[0]
        near = nearest(torch.cat([x[:1], x[10:]]), 5)
        once = gride(near.distances, near.valid, (2, 4)).dimension[0]
        np.testing.assert_allclose(found["dimension"][0, i].values, once, rtol=1e-9)


def test_points_are_equal_within_the_mean_of_their_two_roundings():
    """And not within the sum; pairs are found whatever the direction they lie in."""
    for seed in range(5):
        x = cloud(400, 3, seed)
        near = rounding(x, torch.float32)
        direction = torch.nn.functional.normalize(cloud(400, 3, seed + 10), dim=-1)
        for share, joined in ((0.8, True), (1.3, False)):
            pairs = torch.cat([x, (x.double() + share * (near[..., None] * direction).double()).float()], 1)
            found = settle(pairs, torch.ones(1, 800, dtype=torch.bool), torch.float32)
            same = (found[0, :400] == found[0, 400:]).all(-1)
            assert bool(same.all()) if joined else not bool(same.any())


def test_states_of_16_bits_are_equal_only_if_all_but_every_bit_is():
    """Different tokens lie as little as 0.4 units in the last place apart there."""
    for computed in (torch.float16, torch.bfloat16):
        x = torch.ones(1, 1, 4).repeat(1, 2, 1)
        x[0, 1, 0] += 0.4 * torch.finfo(computed).eps * float(torch.linalg.vector_norm(x[0, 0]))
        mask = torch.ones(1, 2, dtype=torch.bool)
        assert torch.equal(settle(x, mask, computed), x)
        x[0, 1, 0] = 1 + 0.05 * torch.finfo(computed).eps * 2
        assert torch.equal(settle(x, mask, computed)[0, 1], x[0, 0])
