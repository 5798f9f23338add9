"""Norms, massive activations and where they are listed."""

import numpy as np
import pytest
from contract import assert_contract
from standin import StandIn

from tokinterp.geometry.norms import TokenNorms


# -- norms ----------------------------------------------------------------------------------------------------
def test_norms_equal_numpy(device):
    model = StandIn(device=device)
    ds = model.measured(TokenNorms(tokens=None)).result()
    for n in range(5):
        rows = ds.isel(token=(ds["token_prompt"] == n).values)
        for layer in range(4):
            x = model.streams[n][layer]
            norm = np.linalg.norm(x, axis=1)
            np.testing.assert_allclose(rows["norm"].sel(layer=layer), norm, rtol=1e-5)
            one = ds.sel(prompt=n, layer=layer)
            assert float(one["max_norm"]) == pytest.approx(norm.max(), rel=1e-5)
            assert int(one["top_position"]) == norm.argmax()
            top = x[norm.argmax()]
            assert float(one["top_channels"]) == pytest.approx((top**2).sum() ** 2 / (top**4).sum(), rel=1e-5)
            np.testing.assert_allclose(one["top_magnitude"], np.sort(np.abs(x).ravel())[::-1][:3], rtol=1e-5)
    assert (ds["massive_rows"] == 0).all()
    assert ds.sizes["entry"] == 0


def test_planted_massive_activations_are_listed():
    model = StandIn(lengths=(20, 20))
    model.streams[1][2, 7, 4] = 5000.0
    ds = model.measured(TokenNorms(), [[0], [1]]).result()
    assert ds.sizes["entry"] == 1
    entry = ds.isel(entry=0)
    found = [int(entry[f"entry_{k}"]) for k in ("layer", "prompt", "position", "channel")]
    assert found == [2, 1, 7, 4]
    assert float(entry["entry_value"]) == 5000
    one = ds.sel(prompt=1, layer=2)
    assert float(one["top_channels"]) == pytest.approx(1, abs=1e-3)
    assert int(one["top_position"]) == 7
    assert one["massive_rows"].values.tolist() == [1, 1]
    assert int(ds["massive_rows"].sum()) == 2


@pytest.mark.parametrize(
    "options", [{}, {"tokens": 0, "layers": [1]}, {"rule": "sun2024", "factor": 1.5, "entries": 3}]
)
def test_contract_of_norms(options):
    ds = assert_contract(lambda: TokenNorms(**options))
    assert ("token" in ds.dims) == (options.get("tokens") != 0)


def test_a_low_factor_lists_rows_in_any_order():
    ds = assert_contract(lambda: TokenNorms(factor=1.2, entries=5))
    assert ds.sizes["entry"] > 4
    each = [ds["entry_ratio"].values[ds["entry_layer"].values == n] for n in range(4)]
    assert all((np.diff(r) <= 0).all() for r in each)


def test_table_lists_the_largest_entries_with_where_they_are():
    model = StandIn((40, 30), d=32, n_layers=1)
    for stream, width in zip(model.streams, (40, 30), strict=True):
        stream[:] = np.random.default_rng(width).standard_normal(stream.shape)
    model.streams[0][1, 0, 5], model.streams[0][1, 0, 6], model.streams[0][1, 7, 9] = -900.0, 500.0, 950.0
    model.streams[1][1, 3, 5] = 130.0
    ds = model.measured(TokenNorms(), [[1], [0]]).result()
    where = [ds[c].values.tolist() for c in ("entry_prompt", "entry_position", "entry_channel", "entry_value")]
    assert list(zip(*where, strict=True)) == [(0, 7, 9, 950.0), (0, 0, 5, -900.0), (0, 0, 6, 500.0), (1, 3, 5, 130.0)]
    assert ds["entry_layer"].values.tolist() == [1] * 4
    assert ds["entry_token_id"].values.tolist() == [model.ids[p][t] for p, t in zip(where[0], where[1], strict=True)]
    np.testing.assert_allclose(ds["entry_ratio"][0], 950 / np.median(np.abs(model.streams[0][1])), rtol=0.08)
    assert ds["massive_rows"].sum("prompt").values.tolist() == [[0, 0], [3, 2]]
    few = model.measured(TokenNorms(entries=2, rule="sun2024"), [[1], [0]]).result()
    assert few["entry_value"].values.tolist() == [950.0, -900.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "big"}, "rule='big': give 'norm' or 'sun2024'"), ({"factor": 1.0}, "factor=1.0"),
        ({"entries": 0}, "entries=0"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TokenNorms(**settings)
