"""Similarity of layers: streamed equals literal, invariances hold, and noise is not taken for similarity."""

import numpy as np
import pytest
import torch
from contract import assert_contract
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.linalg import orthogonal_procrustes
from standin import StandIn, partitions
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.geometry.kernels import similarity as sim
from tokinterp.geometry.similarity import LayerSimilarity

ALL = ("cka", "procrustes", "rsa", "rbf", "neighbours")


def cloud(n=30, d=6, seed=0, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def rotation(d, seed=9):
    return torch.linalg.qr(cloud(d, d, seed)).Q


# -- the formulas, literally ----------------------------------------------------------------------------------
def literal_cka(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def literal_hsic_u(x, y):
    """Song et al. 2012, equation 5, with matrices."""
    n = len(x)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    one = np.ones(n)
    value = (
        np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)
    )
    return value / (n * (n - 3))


def literal_debiased(x, y):
    return literal_hsic_u(x, y) / np.sqrt(literal_hsic_u(x, x) * literal_hsic_u(y, y))


def literal_procrustes(x, y):
    """1 - squared distance / 2 after the best rotation, found by scipy; equal widths."""
    x, y = x - x.mean(0), y - y.mean(0)
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    q, _ = orthogonal_procrustes(x, y)
    return 1 - np.linalg.norm(x @ q - y) ** 2 / 2


def literal_rsa(x, y):
    from scipy.spatial.distance import pdist

    return stats.spearmanr(pdist(x), pdist(y)).statistic


def literal_mutual(x, y, k):
    from sklearn.neighbors import NearestNeighbors

    sets = []
    for z in (x, y):
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        sets.append(NearestNeighbors(n_neighbors=k).fit(z).kneighbors(return_distance=False))
    return np.mean([len({*a} & {*b}) / k for a, b in zip(*sets, strict=True)])


LITERAL = {
    "cka": literal_cka, "cka_debiased": literal_debiased, "procrustes": literal_procrustes, "rsa": literal_rsa,
    "mutual_neighbours": lambda x, y: literal_mutual(x, y, 4),
}  # fmt: skip


@pytest.mark.parametrize("n", [12, 60])
def test_every_number_equals_its_literal_formula(n):
    x = cloud(n, 9, shift=2.0)
    y = x @ cloud(9, 9, 3) + 0.7 * cloud(n, 9, 5)
    for found in (sim.compare_sets([x, y], None, ALL, k=4), sim.compare_sets([x], [x, y], ALL, k=4)):
        for name, literal in LITERAL.items():
            assert float(found[name][0, 1]) == pytest.approx(literal(x.numpy(), y.numpy()), rel=1e-9), name
        for name, values in found.items():
            assert float(values[0, 0]) == pytest.approx(1, abs=1e-9), name


def test_rbf_cka_is_that_of_its_kernel():
    from scipy.spatial.distance import pdist, squareform

    x, y = cloud(25, 4), cloud(25, 4, 1)
    grams = []
    for z in (x.numpy(), y.numpy()):
        d = pdist(z)
        grams.append(squareform(np.exp(-(d**2) / (2 * np.median(d) ** 2))) + np.eye(25))
    h = np.eye(25) - 1 / 25
    k, l = (h @ g @ h for g in grams)  # noqa: E741
    expected = (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())
    assert float(sim.compare_sets([x, y], None, ["rbf"])["cka_rbf"][0, 1]) == pytest.approx(expected, rel=1e-9)


def pair_sums(x, y):
    k, l = (x * x).sum(1), (y * y).sum(1)  # noqa: E741
    return sim.PairSums(torch.tensor(len(x)), x.sum(0), y.sum(0), x.T @ y, k.sum(), l.sum(), l @ x, k @ y, k @ l)


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 30), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.floats(-5, 5))
def test_feature_space_equals_gram_space(n, d, e, seed, shift):
    x, y = cloud(n, d, seed, shift), cloud(n, e, seed + 1, -shift)
    grams = torch.stack([x @ x.T, y @ y.T])
    for debiased in (False, True):
        gram = sim.hsic(grams, debiased)
        assert float(sim.hsic_from_sums(pair_sums(x, y), debiased)) == pytest.approx(float(gram[0, 1]), abs=1e-7)


def test_left_out_points_are_as_if_they_were_not_there():
    x, keep = cloud(3 * 20, 5).reshape(3, 20, 5), torch.arange(20) % 3 != 0
    grams = x @ x.mT
    for debiased in (False, True):
        expected = sim.hsic(grams[:, keep][:, :, keep], debiased)
        torch.testing.assert_close(sim.hsic(grams, debiased, keep=keep), expected)


# -- theorems -------------------------------------------------------------------------------------------------
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.floats(0.01, 100), st.floats(-10, 10))
def test_rotation_scale_and_shift_change_nothing(seed, scale, shift):
    x, y = cloud(20, 6, seed), cloud(20, 6, seed + 1)
    moved = scale * x @ rotation(6, seed + 2) + shift
    one, two = sim.compare_sets([x, y], None, ALL[:4]), sim.compare_sets([moved, y], None, ALL[:4])
    for name in one:
        assert float(two[name][0, 1]) == pytest.approx(float(one[name][0, 1]), abs=1e-6), name
    same = sim.compare_sets([x], [moved], ALL[:4])
    assert all(float(v[0, 0]) == pytest.approx(1, abs=1e-6) for v in same.values())


def test_a_general_linear_map_does_change_cka_and_procrustes():
    x = cloud(200, 6)
    stretched = x * torch.tensor([20.0, 1, 1, 1, 1, 1])
    found = sim.compare_sets([x], [stretched])
    assert all(float(v) < 0.95 for v in found.values())


def test_debiased_cka_of_noise_is_zero_where_biased_is_not():
    biased, debiased, null = [], [], []
    for seed in range(20):
        sets = [cloud(100, 400, 2 * seed), cloud(100, 400, 2 * seed + 1)]
        found = sim.compare_sets(sets, None, ["cka", "procrustes"])
        biased.append(float(found["cka"][0, 1]))
        debiased.append(float(found["cka_debiased"][0, 1]))
        null.append(float(found["procrustes"][0, 1]))
    assert min(biased) > 0.75
    assert abs(np.mean(debiased)) < 4 * np.std(debiased) / 20**0.5
    assert np.std(debiased) < 0.05
    assert min(null) > 0.6  # Procrustes has no floor of 0: hence the null option


def test_too_few_points_and_constant_clouds_are_nan():
    few = sim.compare_sets([cloud(3, 4), cloud(3, 4, 1)], None, ["cka"])
    assert all(v.isnan().all() for v in few.values())
    flat = sim.compare_sets([cloud(9, 4), torch.ones(9, 4)], None, ["cka", "procrustes", "rsa"])
    assert all(bool(v[0, 1].isnan()) for v in flat.values())


def test_repeated_tokens_are_ties():
    x = torch.cat([cloud(10, 4), cloud(10, 4)])
    y = torch.cat([cloud(10, 5, 1), cloud(10, 5, 1)])
    found = sim.compare_sets([x, y], None, ["rsa"])["rsa"][0, 1]
    assert float(found) == pytest.approx(literal_rsa(x.numpy(), y.numpy()), abs=1e-9)


# -- the measurement ------------------------------------------------------------------------------------------
def all_rows(model):
    keep = np.concatenate(model.ids) != 0
    return [model.rows(layer)[keep] for layer in range(model.n_layers + 1)]


@pytest.mark.parametrize("over", ["sample", "corpus"])
def test_whole_corpus_equals_the_literal_formulas(over, device):
    model = StandIn(device=device)
    asked = LayerSimilarity(over=over, sample=100, measures=ALL, k=4, exclude=("special",))
    ds = model.measured(asked).result()
    x = all_rows(model)
    for name, literal in LITERAL.items():
        for a, b in ((0, 1), (2, 1), (0, 3)):
            assert float(ds[name].sel(layer=a, other_layer=b)) == pytest.approx(literal(x[a], x[b]), rel=2e-5), name
        np.testing.assert_allclose(ds[name], ds[name].values.T, atol=1e-9)
        np.testing.assert_allclose(np.diag(ds[name]), 1, atol=1e-9)


def test_over_prompts_is_the_ratio_of_the_mean_hsic():
    model = StandIn()
    ds = model.measured(LayerSimilarity(over="prompt", measures=["cka"], exclude=("special",))).result()
    total = np.zeros((2, 2, 2))
    layers = (1, 3)
    for n, ids in enumerate(model.ids):
        rows = [model.streams[n][layer][ids != 0] for layer in layers]
        if len(rows[0]) < 4:
            continue
        for i, x in enumerate(rows):
            for j, y in enumerate(rows):
                xc, yc = x - x.mean(0), y - y.mean(0)
                biased = np.linalg.norm(xc.T @ yc) ** 2 / (len(x) - 1) ** 2
                total[i, j] += np.array([biased, literal_hsic_u(x, y)])
    for which, name in enumerate(("cka", "cka_debiased")):
        expected = total[0, 1, which] / np.sqrt(total[0, 0, which] * total[1, 1, which])
        assert float(ds[name].sel(layer=1, other_layer=3)) == pytest.approx(expected, rel=1e-4)
        assert np.isfinite(ds[f"{name}_error"]).all()


@settings(max_examples=10, deadline=None)
@given(partitions(5), st.sampled_from(["sample", "prompt", "corpus"]))
def test_any_batches_give_the_same(batches, over):
    def make():
        return LayerSimilarity(over=over, sample=20)

    model = StandIn()
    one, two = model.measured(make()).result(), model.measured(make(), batches).result()
    for name in one.data_vars:
        np.testing.assert_allclose(two[name], one[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("over", ["sample", "prompt", "corpus"])
def test_contract(over):
    ds = assert_contract(
        lambda: LayerSimilarity(layers=(0, 1, 3), measures=("cka", "procrustes"), over=over, sample=64), atol=1e-3
    )
    assert ds["cka_debiased"].attrs["rows"] == over


def test_contract_of_the_sampled_measures():
    ds = assert_contract(
        lambda: LayerSimilarity(measures=("rsa", "rbf", "neighbours"), sample=40, null=True), atol=2e-2
    )
    assert int(ds["n_sample"]) <= 40
    assert np.abs(ds["rsa_null"].values).max() < 0.3
    assert (np.diag(ds["rsa"].values, 1)[1:] > 0.4).all()


def test_one_massive_token_decides_unless_it_is_excluded():
    model = StandIn(lengths=(40, 40, 40), d=8)
    clean = model.measured(LayerSimilarity(measures="cka")).result()
    for n in range(3):
        model.streams[n][:, 5] = 1e4  # the same row in every layer
    dirty = model.measured(LayerSimilarity(measures="cka", exclude=("special",))).result()
    masked = model.measured(LayerSimilarity(measures="cka")).result()
    assert float(dirty["cka_debiased"].min()) > 0.99
    assert float(np.abs(masked["cka_debiased"].values[0, 1:]).max()) < 0.15
    assert float(np.abs(masked["cka_debiased"] - clean["cka_debiased"]).max()) < 0.15
    assert masked["n_rows"].values.tolist() == [38] * 3


def test_refusals_say_what_to_do():
    with pytest.raises(ValueError, match="'ckaa' is none of 'cka'"):
        LayerSimilarity(measures=["ckaa"])
    with pytest.raises(ValueError, match="over='all'"):
        LayerSimilarity(over="all")
    with pytest.raises(ValueError, match="k=2000"):
        LayerSimilarity(k=2000)
    model, prompts = tiny(), some_prompts([30])
    with pytest.raises(ValueError, match=r"needs .* GiB: choose fewer layers="):
        ti.measure(model, prompts, {"s": LayerSimilarity(over="corpus")}, memory=1000, progress=False)
    with pytest.raises(ValueError, match="at least two"):
        ti.measure(model, prompts, {"s": LayerSimilarity(layers=[1])}, progress=False)
    with pytest.raises(ValueError, match="4 tokens to compare"):
        ti.measure(model, some_prompts([5]), {"s": LayerSimilarity()}, progress=False)


def test_one_heavy_row_costs_no_digits():
    """Sums over pairs of rows are in float64, also within a prompt."""
    model = StandIn((80,))
    for stream in model.streams[0]:
        stream[7] *= 1e3
        stream[:] = stream.astype(np.float32)
    ds = model.measured(LayerSimilarity(layers=[1, 3], over="prompt", measures=["cka"], exclude=())).result()
    x, y = (model.streams[0][n] for n in (1, 3))
    assert float(ds["cka"].sel(layer=1, other_layer=3)) == pytest.approx(literal_cka(x, y), rel=1e-9)


def test_the_null_pairs_rows_at_random_by_its_seed():
    """Rows of the other layer are permuted: another order for another seed, and no layer is then like itself."""
    model, names = StandIn(lengths=(30, 30), d=6), ("cka_debiased", "rsa")
    found = [
        model.measured(LayerSimilarity(measures=("cka", "rsa"), sample=100, null=True, seed=s)).result()
        for s in range(6)
    ]
    for name in names:
        draws = np.array([ds[f"{name}_null"].values for ds in found])
        np.testing.assert_allclose(found[0][name], found[1][name], atol=1e-9)  # all rows are in the sample
        assert draws.std(0).min() > 1e-3
        assert abs(draws.mean()) < 0.1, "a layer is like itself in the null"


def test_errors_are_those_of_the_jackknife_over_prompts():
    model = StandIn(lengths=(12, 15, 9, 20))
    make = lambda: LayerSimilarity(over="prompt", measures=["cka"], layers=(1, 3), exclude=("special",))  # noqa: E731
    ds = model.measured(make()).result()
    for name in ("cka", "cka_debiased"):
        parts = []
        for out in range(4):
            others = [n for n in range(4) if n != out]
            part = make()
            part.begin(model.info, model.prompts)
            part.update(model.batch(others))
            parts.append(float(part.result()[name][0, 1]))
        error = np.sqrt(3 / 4 * np.square(np.array(parts) - np.mean(parts)).sum())
        assert float(ds[f"{name}_error"][0, 1]) == pytest.approx(error, rel=1e-6)


def test_the_sample_is_drawn_by_the_seed():
    model = StandIn(lengths=(60, 60), d=6)
    draw = lambda seed: model.measured(LayerSimilarity(measures=("cka",), sample=30, seed=seed)).result()  # noqa: E731
    one, again, other = draw(1)["cka"].values, draw(1)["cka"].values, draw(2)["cka"].values
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
