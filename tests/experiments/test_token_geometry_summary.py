"""The record of the geometry of tokens against loops over planted results."""

import numpy as np
import pytest
import xarray as xr

from experiments import token_geometry_summary as summary
from experiments.token_geometry_summary import sentences, summarise

NULLS = ["none", "shuffle:5"]


@pytest.fixture(scope="module")
def tree():
    rng = np.random.default_rng(0)
    dims = ("null", "prompt", "layer", "scale")
    coords = {"null": NULLS, "layer": [0, 1, 2], "scale": [2, 4]}
    value = 3 + rng.random((2, 9, 3, 2)) + np.arange(3)[:, None]
    value[:, :, 0] = 50  # the embedding is no layer of the claim
    value[1] *= np.array([1.3, 0.9, 1.2] * 3)[:, None, None]
    dimension = xr.Dataset({"dimension": (dims, value)}, coords)
    logits = value[:, :, -1] ** 2 * np.exp(0.1 * rng.normal(size=(2, 9, 2)))
    nats = rng.random((2, 9, 3, 1)) + np.arange(2)[:, None, None, None]
    lens = xr.Dataset(
        {"cross_entropy": (("null", "prompt", "layer", "variant"), nats),
         "entropy": (("null", "prompt", "layer", "variant"), nats**2)},
        {"null": NULLS, "layer": [0, 1, 2], "variant": ["normed"]},
    )  # fmt: skip
    overlap = xr.Dataset(
        {"overlap": (("null", "prompt", "block", "k"), rng.random((2, 9, 2, 2))),
         "chance": (("null", "k"), [[0.1, 0.2], [0.1, 0.2]])}, {"null": NULLS, "k": [1, 5]},
    )  # fmt: skip
    cosine = xr.Dataset(
        {n: (("null", "prompt", "layer"), rng.random((2, 9, 3)))
         for n in ("cosine_diagonal", "cosine_centred", "angle")}
        | {"smoothness": (("null", "prompt", "layer", "offset"), rng.random((2, 9, 3, 2)))},
        {"null": NULLS, "layer": [0, 1, 2]},
    )  # fmt: skip
    graph = xr.Dataset(
        {n: (("null", "prompt", "layer", "k"), rng.random((2, 9, 3, 2))) for n in ("reciprocity", "transitivity")},
        {"null": NULLS, "layer": [0, 1, 2], "k": [1, 5]},
    )  # fmt: skip
    by = ("null", "layer", "scale")
    r, q = rng.uniform(-1, 1, (2, 2, 2)), np.array([0.01, 0.2, 0.03, 0.5, 0.6, 0.7, 0.8, 0.9]).reshape(2, 2, 2)
    correlation = xr.Dataset(
        {"pearson": (by, r), "pearson_q": (by, q), "n": (by, np.full((2, 2, 2), 9)),
         "pearson_interval": (("bound", *by), np.stack([r - 0.1, r + 0.1]))},
        {"null": NULLS, "layer": [1, 2], "scale": [2, 4]},
    )  # fmt: skip
    out = xr.DataTree.from_dict(
        {"dimension": dimension, "lens": lens, "overlap": overlap, "cosine": cosine, "graph": graph,
         "correlation": correlation,
         "logits": xr.Dataset({"dimension": (("null", "prompt", "scale"), logits)}, {"null": NULLS, "scale": [2, 4]})}
    )  # fmt: skip
    out.attrs = {"n_prompts": 9, "n_common": 9, "n_tokens": 40}
    return out


def test_numbers_of_the_dimension_are_those_of_loops(tree):
    found, value = summarise(tree)["dimension"], tree["dimension"]["dimension"].values
    higher = {0: 0, 1: 0}
    for n in range(2):
        for s, scale in enumerate(("2", "4")):
            one = found[NULLS[n]]
            mean = [np.mean([value[n, p, layer, s] for p in range(9)]) for layer in (1, 2)]
            assert one["mean"][scale] == pytest.approx(mean)
            assert one["std"][scale] == pytest.approx([np.std(value[n, :, layer, s]) for layer in (1, 2)])
            assert one["peak"][scale] == {"layer": 1 + int(np.argmax(mean)), "value": pytest.approx(max(mean))}
            assert one["prompts_with_value"][scale] == 1
            if n:
                text = [np.mean(value[0, :, layer, s]) for layer in (1, 2)]
                assert one["ratio_to_text"][scale] == pytest.approx(np.divide(mean, text))
                higher[s] = sum(value[1, p, 1:, s].max() > value[0, p, 1:, s].max() for p in range(9))
                assert one["higher_peak"][scale] == pytest.approx(higher[s] / 9)
    assert 0.5 < higher[1] / 9 < 1


def test_logits_are_compared_with_the_last_layer_in_logarithms(tree):
    found = summarise(tree)["logits"]["with_last_layer"]
    for n, null in enumerate(NULLS):
        for s, scale in enumerate(("2", "4")):
            x, y = (np.log(tree[name]["dimension"].values[n]) for name in ("dimension", "logits"))
            assert found[null][scale] == pytest.approx(np.corrcoef(x[:, 2, s], y[:, s])[0, 1])


def test_the_other_numbers_are_means_over_prompts_behind_the_embedding(tree):
    record = summarise(tree)
    for n, null in enumerate(NULLS):
        loss, entropy = (tree["lens"][v].values[n, :, 2, 0] for v in ("cross_entropy", "entropy"))
        one = record["loss"][null]
        wanted = (loss.mean(), loss.std(), entropy.mean(), np.corrcoef(loss, entropy)[0, 1])
        assert (one["mean"], one["std"], one["entropy"], one["pearson_entropy_loss"]) == pytest.approx(wanted)
        shared = tree["overlap"]["overlap"].values[n].mean(0)
        assert record["overlap"][null] == {"1": pytest.approx(shared[:, 0]), "5": pytest.approx(shared[:, 1])}
        for name in ("cosine_diagonal", "angle"):
            assert record["cosine"][null][name] == pytest.approx(tree["cosine"][name].values[n, :, 1:].mean(0))
        near = tree["cosine"]["smoothness"].values[n, :, 1:, 0].mean(0)
        assert record["cosine"][null]["smoothness"] == pytest.approx(near)
        mutual = tree["graph"]["reciprocity"].values[n, :, 1:, 1].mean(0)
        assert record["graph"][null]["reciprocity"]["5"] == pytest.approx(mutual)
    assert record["overlap"]["chance"] == {"1": pytest.approx(0.1), "5": pytest.approx(0.2)}
    assert record["correlation"]["none"]["pearson_interval"][0] == pytest.approx(
        [tree["correlation"]["pearson"].values[0, 0, 1] + x for x in (-0.1, 0.1)]
    )


def test_sentences_count_what_is_significant(tree):
    said = "\n".join(sentences(summarise(tree)))
    r = tree["correlation"]["pearson"].values[0, :, 1]
    assert f"n2 = 4, none: {r.min():.2f} to {r.max():.2f} over layers, 0 of 2 with q < 0.05" in said
    low = tree["correlation"].to_dataset().assign(pearson_q=tree["correlation"]["pearson_q"] * [1, 0.1])
    again = summary._correlation(low)
    assert "1 of 2 with q" in "\n".join(sentences({"correlation": again}))
    peak = tree["dimension"]["dimension"].values[:, :, 1:, 1].max(2)
    assert f"higher under S = 5, n2 = 4: {100 * (peak[1] > peak[0]).mean():.0f} %" in said
