"""Probes belong to a model and its places, and are refused elsewhere."""

import dataclasses

import few_probes
import pytest
import torch
from few_probes import text
from tiny import tiny_lm

import tokinterp as ti
from tokinterp.erasure.probes import TokenProbes
from tokinterp.models import wrap

torch.set_num_threads(1)
model, fitted = few_probes.model, few_probes.fitted


def test_probes_of_another_model_or_place_are_refused(model, fitted, tmp_path):
    fitted.save(tmp_path / "probes")
    with pytest.raises(ValueError, match="token probes of another model: fitted on tiny"):
        TokenProbes.load(tmp_path / "probes", wrap(tiny_lm("llama", seed=1), id="other"))
    with pytest.raises(ValueError, match="fitted on tiny with d_model=32"):
        fitted.check_model(dataclasses.replace(model.info, d_model=64))
    with pytest.raises(ValueError, match=r"^parts=.*: 9 is none of layers=\[0, 1, 2, 3\]"):
        TokenProbes(fitted.layers, [0], fitted.labels, {9: {}}, fitted.facts)
    with pytest.raises(ValueError, match=r"^facts=.*: it has no 'd_model'"):
        TokenProbes(fitted.layers, [0], fitted.labels, {}, {"d_vocab": 9})
    changed = TokenProbes(fitted.layers, [0], fitted.labels, {}, {**fitted.facts, "tokenizer": "x"})
    with pytest.raises(ValueError, match=r"fitted on tiny \(tokenizer x\)"):
        changed.check_model(model.info)
    x = torch.randn(2, 32)
    with pytest.raises(ValueError, match=r"no probe of layer 7: probes were fitted at layers \[0, 1, 2, 3\]"):
        fitted.read(x, 7, 0, torch.zeros(2).long())
    with pytest.raises(ValueError, match=r"no probe of offset 1: probes were fitted at offsets \[-1, 0\]"):
        fitted.weight(0, 1)
    with pytest.raises(ValueError, match=r"states of shape \(2, 31\)"):
        fitted.read(x[:, 1:], 0, 0, torch.zeros(2).long())


def test_predictions_are_the_greatest_logits_in_order(fitted, model):
    states = ti.capture(model, text(), [0], ti.resid([2])).rows(2)
    found = fitted.predict(states, 2, -1, k=3)
    logits = fitted.standardise(states, 2) @ fitted.weight(2, -1).T
    for row, ids in zip(logits, found, strict=True):
        best = sorted(range(len(row)), key=lambda c, row=row: -float(row[c]))[:3]
        assert ids.tolist() == fitted.labels[best].tolist()
