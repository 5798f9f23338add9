"""Probes in a folder: what is written comes back, what is damaged is refused."""

import few_probes
import pytest
import torch

from tokinterp.erasure.probes import TokenProbes

torch.set_num_threads(1)
model, fitted = few_probes.model, few_probes.fitted


# -- files and refusals ---------------------------------------------------------------------------------------
def test_round_trip_through_files(model, fitted, tmp_path):
    fitted.save(tmp_path / "probes")
    again = TokenProbes.load(tmp_path / "probes", model)
    assert (again.layers, again.offsets, again.digest) == (fitted.layers, fitted.offsets, fitted.digest)
    x, t = torch.randn(9, 32), torch.randint(0, 60, (9,))
    for layer in (0, 3):
        for offset in (-1, 0):
            a, b = again.read(x, layer, offset, t), fitted.read(x, layer, offset, t)
            torch.testing.assert_close(a.log_prob, b.log_prob, equal_nan=True, atol=0, rtol=0)
            assert torch.equal(a.rank, b.rank)
            known = b.rank == 0
            assert torch.equal(fitted.predict(x, layer, offset)[known, 0], t[known])
    assert torch.isnan(fitted.read(x, 0, 0, torch.full((9,), 300)).log_prob).all()  # a type that was never a label
    assert (fitted.read(x, 0, 0, torch.full((9,), 300)).rank == -1).all()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        fitted.save(tmp_path / "probes")
    fitted.save(tmp_path / "probes", overwrite=True)
    (tmp_path / "probes" / "layer-002.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="is damaged"):
        TokenProbes.load(tmp_path / "probes")
