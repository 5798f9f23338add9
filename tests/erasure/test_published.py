"""Checkpoints as the authors released them."""

import few_probes
import pytest
import torch

from tokinterp.erasure import read_feucht2024

torch.set_num_threads(1)
model = few_probes.model


def test_released_checkpoints(model, tmp_path):
    weights = {(n, o): torch.randn(320, 32) for n in (-1, 1) for o in (0, -1)}
    for (n, o), w in weights.items():
        torch.save({"fc.weight": w}, tmp_path / f"layer{n}_tgtidx{o}.ckpt")
    probes = read_feucht2024(tmp_path, model=model)
    assert (probes.layers, probes.offsets) == ([0, 2], [-1, 0])
    x, t = torch.randn(5, 32), torch.arange(5)
    expected = torch.log_softmax(x @ weights[1, -1].T, 1)[torch.arange(5), t]
    torch.testing.assert_close(probes.read(x, 2, -1, t).log_prob, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="says no layer and offset"):
        read_feucht2024(tmp_path / "probe.ckpt")
    torch.save({"fc.weight": torch.randn(320, 31)}, tmp_path / "layer0_tgtidx0.ckpt")
    with pytest.raises(ValueError, match=r"fc.weight of shape \[\(320, 31\)\]; it should be \(320, 32\)"):
        read_feucht2024(tmp_path / "layer0_tgtidx0.ckpt", model=model)
    torch.save({"fc.weight": torch.randn(320, 32)}, tmp_path / "layer9_tgtidx0.ckpt")
    with pytest.raises(ValueError, match="no point of the residual stream"):
        read_feucht2024(tmp_path / "layer9_tgtidx0.ckpt", model=model)
