"""Errors of single tokens: of the published score, relative, one map for each prompt, kept maps."""

import numpy as np
import pytest
import torch
from contract import assert_contract
from golden.llm_microscope import clouds
from hypothesis import given, settings
from linear_pairs import FOUND, stand_in, streamed
from standin import StandIn, partitions
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.linearity.maps import LinearMaps

torch.set_num_threads(1)


PROMPTS = [22, 30, 17, 30, 25, 19, 28]


# -- the measurement ------------------------------------------------------------------------------------------


# -- tokens ---------------------------------------------------------------------------------------------------
@settings(max_examples=10, deadline=None)
@given(partitions(4))
@pytest.mark.slow
def test_squares_of_the_published_errors_add_up_to_one_minus_the_score(batches):
    layer = streamed(stand_in(), ti.linearity.Linearity(exclude=()), batches)
    ds = streamed(stand_in(), ti.linearity.TokenNonlinearity(exclude=(), scale="paper"), batches)
    np.testing.assert_allclose((ds["nonlinearity"] ** 2).sum("token"), 1 - layer["linearity"], rtol=1e-4)
    rms = streamed(stand_in(), ti.linearity.TokenNonlinearity(exclude=()), batches)
    np.testing.assert_allclose(rms["nonlinearity"], ds["nonlinearity"] * np.sqrt(145), rtol=1e-5)
    np.testing.assert_allclose(ds["nonlinearity_mean"], ds["nonlinearity"].mean("block"), rtol=1e-6)


def test_errors_relative_to_the_token():
    model = stand_in()
    ds = streamed(model, ti.linearity.TokenNonlinearity(exclude=(), scale="token"))
    paper = streamed(model, ti.linearity.TokenNonlinearity(exclude=(), scale="paper"))
    y = model.rows(1)
    size = np.linalg.norm(y - y.mean(0), axis=1)
    ratio = paper["nonlinearity"][:, 0] * np.sqrt((size**2).sum()) / size
    np.testing.assert_allclose(ds["nonlinearity"][:, 0], ratio, rtol=1e-3)


def test_one_map_for_each_prompt_is_the_released_variant():
    cases = {0: FOUND["linear"][0], 2: FOUND["linear"][3]}
    model = StandIn(lengths=(cases[0]["n"], 5, cases[2]["n"]), d=8)
    for prompt, case in cases.items():
        model.streams[prompt][:2] = clouds(case["seed"], case["n"], case["d"])
    ds = streamed(model, ti.linearity.TokenNonlinearity(exclude=(), fit="prompt", scale="paper"))
    for prompt, case in cases.items():
        here = (ds["token_prompt"] == prompt).values
        np.testing.assert_allclose(ds["nonlinearity"].values[here, 0], case["released_errors"], rtol=1e-3)
    assert np.isnan(ds["nonlinearity"].values[(ds["token_prompt"] == 1).values]).all()  # passes through all 5 tokens


def test_maps_are_kept_loaded_and_applied_to_another_text(tmp_path):
    model, prompts = tiny(), some_prompts([60] * 12)
    asked = {"m": ti.linearity.TokenNonlinearity(blocks=[0, 2])}
    fitted = ti.measure(model, prompts, asked, progress=False).children["m"].to_dataset(inherit=False)
    own = ti.linearity.fit_linear_maps(model, prompts, [0, 2], progress=False)
    np.testing.assert_array_equal(own.linearity, fitted["linearity"])
    maps = LinearMaps.load(own.save(tmp_path / "maps.safetensors"))
    assert maps.digest == own.digest
    again = (
        ti.measure(model, prompts[:3], {"m": ti.linearity.TokenNonlinearity(blocks=[0, 2], maps=maps)}, progress=False)
        .children["m"]
        .to_dataset(inherit=False)
    )
    n = again.sizes["token"]
    np.testing.assert_allclose(again["nonlinearity"], fitted["nonlinearity"][:n], rtol=1e-4)
    with pytest.raises(ValueError, match=r"no maps of blocks \[1\]: there are \[0, 2\]"):
        ti.measure(model, prompts, {"m": ti.linearity.TokenNonlinearity(maps=maps)}, progress=False)
    with pytest.raises(ValueError, match="fitted on tiny-llama"):
        ti.measure(tiny("gpt2"), prompts, {"m": ti.linearity.TokenNonlinearity(blocks=[0], maps=maps)}, progress=False)
    (tmp_path / "other").mkdir()
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "other" / "x.safetensors")
    with pytest.raises(ValueError, match="holds no linear maps"):
        LinearMaps.load(tmp_path / "other" / "x.safetensors")


def test_token_contract():
    ds = assert_contract(ti.linearity.TokenNonlinearity)
    assert ds.sizes["token"] == sum(PROMPTS)
    assert (~ds["fitted"].values).sum() == len(PROMPTS)  # BOS
    assert_contract(
        lambda: ti.linearity.TokenNonlinearity(fit="prompt", tokens=3), prompts=some_prompts([60, 50, 64, 55])
    )
