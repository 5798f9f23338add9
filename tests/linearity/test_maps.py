"""Maps that are kept: their bits come back, and other models, blocks and shapes are refused."""

from dataclasses import replace

import pytest
import torch
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.linearity.maps import LinearMaps


@pytest.fixture(scope="module")
def maps():
    draw = torch.Generator().manual_seed(0)
    info = tiny().info
    d = info.d_model

    def some(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    facts = {"model": info.id, "weights": info.identity, "blocks": [0, 2], "n": 50}
    return LinearMaps(some(2, d, d), some(2, d), some(2, d), some(2).abs(), some(2), facts)


def test_a_file_gives_the_same_maps(maps, tmp_path):
    found = LinearMaps.load(maps.save(tmp_path / "maps.safetensors"))
    assert found.digest == maps.digest
    assert found.facts == maps.facts
    assert torch.equal(found.weight, maps.weight)
    assert replace(maps, weight=maps.weight + 1e-9).digest != maps.digest
    assert replace(maps, facts={**maps.facts, "blocks": [0, 1]}).digest != maps.digest


def test_maps_of_another_model_or_block_are_refused(maps):
    maps.check_use(tiny().info, [0, 2])
    with pytest.raises(ValueError, match=r"no maps of blocks \[1\]: there are \[0, 2\]"):
        maps.check_use(tiny().info, [0, 1])
    with pytest.raises(ValueError, match="linear maps of another model: fitted on tiny-llama"):
        maps.check_use(tiny("gpt2").info, [0])


def test_numbers_that_are_none_are_refused_but_for_refused_fits(maps):
    bad = maps.weight.clone()
    bad[1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite numbers in weight"):
        replace(maps, weight=bad)
    refused = maps.linearity.clone()
    refused[1] = torch.nan
    assert replace(maps, weight=bad, linearity=refused).facts["n"] == 50
    with pytest.raises(ValueError, match="mean_in"):
        replace(maps, mean_in=maps.mean_in[:1])


def test_maps_of_a_run_predict_the_next_layer():
    prompts = some_prompts([40] * 6)
    maps = ti.linearity.fit_linear_maps(tiny(), prompts, [1], exclude=(), progress=False)
    batch = ti.capture(tiny(), prompts, range(6), ti.resid([1, 2]))
    x, y = (batch.rows(n).double() for n in (1, 2))
    fitted = maps.mean_out[0] + (x - maps.mean_in[0]) @ maps.weight[0]
    design = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(fitted, design @ torch.linalg.lstsq(design, y).solution, rtol=1e-5, atol=1e-5)
