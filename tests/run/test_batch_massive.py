"""Which rows are left out as massive: those of a layer by itself, and of all layers where these share their rows."""

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.lens.fit import _add, _empty_chains

MASSIVE = {1: 3, 2: 5, 3: 6}  # layer -> position of its massive row; another one at each layer
LENGTHS = [14, 12, 11, 13, 10]
WITHOUT = ("special", "massive")


@pytest.fixture(scope="module")
def planted():
    model = ti.wrap(tiny_lm("llama"), byte_tokenizer(), id="planted")

    def plant(layer):
        def hook(_module, _args, out):
            h = (out if torch.is_tensor(out) else out[0]).clone()
            if (before := MASSIVE.get(layer - 1)) is not None:
                h[:, before] = h[:, before + 1].roll(1, -1)  # another row of ordinary length
            if h.shape[1] > MASSIVE[layer]:
                h[:, MASSIVE[layer]] *= 1e4
            return h if torch.is_tensor(out) else (h, *out[1:])

        return hook

    for n, block in enumerate(model.lm.model.layers):
        block.register_forward_hook(plant(n + 1))
    rng = np.random.default_rng(0)
    ids = [[1, *rng.integers(20, 300, n - 1).tolist()] for n in LENGTHS]
    return model, ti.Prompts.from_ids(ids, model)


def measured(planted, **asked):
    found = ti.measure(*planted, asked, progress=False)
    return [found[name].to_dataset() for name in asked]


USUAL = np.array(LENGTHS) - 1  # without BOS


def test_a_layer_by_itself_is_without_its_own_massive_rows(planted):
    pooled = ti.geometry.PooledStates(layers=[0, 1, 2], exclude=WITHOUT)
    whole = ti.geometry.PooledStates(layers=[0, 1, 2])
    entropy, cosine, cloud, states, every = measured(
        planted,
        entropy=ti.geometry.MatrixEntropy(layers=[0, 1, 2], exclude=WITHOUT),
        cosine=ti.geometry.CosineSimilarity(layers=[0, 1, 2], exclude=WITHOUT),
        cloud=ti.geometry.PerCloud(np.mean, layers=[0, 1, 2], exclude=WITHOUT),
        pooled=pooled, whole=whole,
    )  # fmt: skip
    expected = USUAL[:, None] - [0, 1, 1]
    np.testing.assert_array_equal(entropy["n_rows"], expected)
    np.testing.assert_array_equal(cosine["n_tokens"], expected)
    np.testing.assert_array_equal(cloud["n_points"], expected)
    same = np.isclose(states["state"], every["state"], rtol=1e-6).all(-1)
    assert same.tolist() == [[True, False, False]] * len(LENGTHS)


def test_layers_that_are_compared_are_without_rows_massive_at_any_of_them(planted):
    overlap, imbalance, similarity = measured(
        planted,
        overlap=ti.geometry.NeighbourOverlap([2], layers=[0, 1, 2], exclude=WITHOUT, labels=()),
        imbalance=ti.geometry.InformationImbalance([2], layers=[0, 1, 2], exclude=WITHOUT),
        similarity=ti.geometry.LayerSimilarity(layers=[0, 1, 2], exclude=WITHOUT, sample=16),
    )
    for found in (overlap["n_points"], imbalance["n_points"], similarity["n_rows"]):
        np.testing.assert_array_equal(found, USUAL - 2)


def test_maps_between_layers_are_fitted_without_rows_massive_at_any_of_them(planted):
    for blocks, left in (([0], 1), ([1], 2), ([0, 1], 2), ([0, 1, 2], 3)):
        (found,) = measured(planted, maps=ti.linearity.Linearity(blocks=blocks, held_out=False))
        assert found["n"].values.tolist() == [sum(USUAL) - left * len(LENGTHS)] * len(blocks)
        np.testing.assert_array_equal(found["prompt_n"], USUAL - left)
    recall, all_rows = measured(
        planted, recall=ti.memory.PrefixRecall(layers=[0, 1, 2]), all=ti.memory.PrefixRecall([0, 1, 2], exclude=())
    )
    assert int(all_rows["n_fitted"] - recall["n_fitted"]) == 2 * len(LENGTHS)


def test_a_tuned_lens_is_fitted_without_rows_massive_at_its_layer_or_the_last(planted):
    model, prompts = planted
    lens = ti.lens.TunedLens.identity(model.info, [0, 1, 2])
    batch = ti.capture(model, prompts, range(len(prompts)), ti.resid([0, 1, 2, 3]))
    for exclude, left in ((WITHOUT, [1, 2, 2]), (("special",), [0, 0, 0])):
        chains = _empty_chains(lens, batch)
        _add(chains, lens, batch, exclude)
        assert [int(c.count) for c in chains] == [sum(USUAL) - n * len(LENGTHS) for n in left]
