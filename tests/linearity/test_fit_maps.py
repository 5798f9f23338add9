"""Maps fitted on a corpus: the same as those of TokenNonlinearity, taken up from a store."""

import numpy as np
import pytest
from contract import assert_contract
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.linearity.fit_maps import BlockMaps, fit_linear_maps

PROMPTS = [60] * 6


def test_maps_are_labelled_and_independent_of_batches():
    ds = assert_contract(lambda: BlockMaps(blocks=[0, 2], exclude=()), prompts=some_prompts(PROMPTS), atol=1e-4)
    assert ds["weight"].dims == ("block", "channel_in", "channel_out")
    assert int(ds["n"]) == 360


def test_maps_score_as_those_of_the_run_that_fits_them_itself():
    prompts = some_prompts(PROMPTS)
    maps = fit_linear_maps(tiny(), prompts, [1], exclude=("special",), progress=False)
    asked = {
        "itself": ti.linearity.TokenNonlinearity([1], exclude=("special",)),
        "given": ti.linearity.TokenNonlinearity([1], exclude=("special",), maps=maps),
    }
    run = ti.measure(tiny(), prompts, asked, progress=False)
    for name in ("nonlinearity", "linearity", "n"):
        np.testing.assert_array_equal(run["given"][name], run["itself"][name], name)


def test_a_finished_store_gives_the_same_maps_without_a_pass(tmp_path, monkeypatch):
    prompts, store = some_prompts(PROMPTS), tmp_path / "maps.zarr"
    maps = fit_linear_maps(tiny(), prompts, [0, 1], store=store, progress=False)
    monkeypatch.setattr(BlockMaps, "update", None)
    assert fit_linear_maps(tiny(), prompts, [0, 1], store=store, progress=False).digest == maps.digest
    with pytest.raises(ValueError, match="another run"):
        fit_linear_maps(tiny(), prompts, [0, 2], store=store, progress=False)


def test_input_is_refused_before_the_run():
    with pytest.raises(ValueError, match="the prompts have 20 tokens, and a map of 32 channels"):
        fit_linear_maps(tiny(), some_prompts([20]), progress=False)
    with pytest.raises(ValueError, match="share: maps are fitted in one piece"):
        fit_linear_maps(tiny(), some_prompts(PROMPTS), share=(0, 2), progress=False)
