"""What every measurement must hold: labels, any batches, any split and merge, any interruption."""

from __future__ import annotations

import numpy as np
from stored_runs import assert_same
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.run.stream import stream

LENGTHS = [22, 30, 17, 30, 25, 19, 28]


def assert_contract(make, model=None, prompts=None, *, rtol=2e-4, atol=2e-5, batch_tokens=60):
    """Measure with ``make()`` in several ways, which must agree; return the Dataset."""
    model = model or tiny()
    prompts = prompts if prompts is not None else some_prompts(LENGTHS)

    def run(**options):
        return ti.measure(model, prompts, {"m": make()}, progress=False, **options)

    whole = run(batch_tokens=10**6)
    ti.check(whole)
    assert whole["m"].attrs["measurement"] == type(make()).__name__
    assert_same(run(batch_tokens=1), whole)
    assert_same(run(batch_tokens=batch_tokens), whole)
    _assert_verbs(make, model, prompts, batch_tokens, whole["m"].to_dataset(inherit=False), rtol, atol)
    return whole["m"].to_dataset(inherit=False)


def _assert_verbs(make, model, prompts, batch_tokens, whole, rtol, atol):
    """Two halves, one of them saved and loaded at each batch, merged in the other order."""
    if make().passes > 1:
        return  # the reading before decides what the next one counts: tests/test_resume.py
    halves = [make(), make()]
    for m in halves:
        m.begin(model.info, prompts)
    sites = halves[0].sites(model.info)
    for i, batch in enumerate(stream(model, prompts, sites, batch_tokens=batch_tokens)):
        m = halves[i % 2]
        m.update(batch)
        again = make()
        again.begin(model.info, prompts)
        again.load(m.state(), model.device)
        halves[i % 2] = again
    halves[1].merge(halves[0])
    found = halves[1].result()
    for name, v in found.data_vars.items():
        a, b = v.values, whole[name].values
        if a.dtype.kind in "fc":
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=str(name))
        else:
            np.testing.assert_array_equal(a, b, str(name))
