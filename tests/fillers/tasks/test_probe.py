"""Probes of the fillers: what is frozen stays frozen, and what the dots hold is found where it was put."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from stopped_fits import Killed, stopping

import tokinterp as ti
from experiments import dot_by_dot
from figures.dot_by_dot import compose
from tokinterp.fillers.tasks import probe
from tokinterp.fillers.tasks.linear_probes import linear_probe
from tokinterp.fillers.tasks.network import Network, build, parameters_hash
from tokinterp.fillers.tasks.schedule import Schedule
from tokinterp.fillers.tasks.task import Task

TASK = Task(n=4, d=2, m=5)
SHORT = Schedule(steps=3, batch=8, rate=1e-2)


@pytest.fixture(scope="module")
def lm():
    return build(TASK, Network(2, 32, 2, 64), 0)


def test_the_first_fillers_are_dropped():
    x = TASK.sample("filler", 6, torch.Generator().manual_seed(0)).sequences
    assert torch.equal(probe.keep_fillers(x, TASK, 1.0).ids, x.ids)
    for share, left in ((0.0, 0), (0.1, 2), (0.5, 8), (0.9, 15)):
        short = probe.keep_fillers(x, TASK, share)
        assert int((short.ids[0] == TASK.words.filler).sum()) == left
        assert torch.equal(short.ids[:, :5], x.ids[:, :5])
        assert torch.equal(short.ids[:, -2:], x.ids[:, -2:])
        every = torch.arange(6)
        assert (short.ids[every, short.answer_at] == TASK.words.answer).all()
        assert torch.equal(short.targets[every, short.answer_at], x.ids[:, -1])
    # floor(F (1 - p)) is exact where 1 - p is not.
    ten = Task(n=4, d=2, fillers=10)
    y = ten.sample("filler", 1, torch.Generator().manual_seed(0)).sequences
    kept = [int((probe.keep_fillers(y, ten, i / 10).ids == ten.words.filler).sum()) for i in range(11)]
    assert kept == list(range(11))
    with pytest.raises(ValueError, match=r"share=1\.5"):
        probe.keep_fillers(x, TASK, 1.5)


def test_a_frozen_probe_changes_the_last_block_alone_and_the_released_one_everything(lm):
    before = parameters_hash(lm)
    for variant in probe.VARIANTS:
        tuned = probe.finetune(lm, TASK, 0.5, variant, SHORT, 0)
        changed = {
            name
            for (name, a), (_, b) in zip(lm.named_parameters(), tuned.named_parameters(), strict=True)
            if not torch.equal(a, b)
        }
        assert changed == probe.trainable_names(lm, variant)
        assert ("model.layers.0.mlp.up_proj.weight" in changed) == (variant == "released")
    assert parameters_hash(lm) == before
    assert all(p.requires_grad for p in lm.parameters())


def test_a_frozen_parameter_that_moves_is_noticed(lm, monkeypatch):
    freeze = probe.freeze

    def move(network):
        network.model.embed_tokens.weight.data.add_(1)

    def freeze_and_move(network, variant):
        handle = network.lm_head.weight.register_hook(lambda _: move(network))
        assert handle is not None
        return freeze(network, variant)

    monkeypatch.setattr(probe, "freeze", freeze_and_move)
    with pytest.raises(RuntimeError, match="a frozen parameter changed"):
        probe.finetune(lm, TASK, 1.0, "frozen", SHORT, 0)


def test_probe_result(lm):
    ds = probe.probe_fillers(
        {"net": lm}, TASK, kept=(0, 0.5, 1), schedule=SHORT, test_examples=60, device="cpu", progress=False
    )
    assert ds["trunk"].values.tolist() == ["net", "random"]
    assert ds["n_kept"].values.tolist() == [0, 8, 16]
    tuned = probe.finetune(lm, TASK, 0.5, "frozen", SHORT, 0)
    test = TASK.test_set("filler", 60, probe.PROBE_SEED)
    short = probe.keep_fillers(test.sequences, TASK, 0.5)
    said = tuned(input_ids=short.ids).logits[torch.arange(60), short.answer_at].argmax(-1)
    assert float((said == test.answer).double().mean()) == float(ds["accuracy"].sel(trunk="net", kept=0.5))
    ti.check(ds)


def test_the_random_trunk_is_an_untrained_network_of_its_own(lm, monkeypatch):
    """Of the shape of the first, from a seed that no trained network has; tuned and scored in its own place."""
    tuned = {}

    def remember(network, **rest):
        tuned[parameters_hash(network)] = tuned.get(parameters_hash(network), 0) + 1
        return network

    monkeypatch.setattr(probe, "finetune", remember)
    options = {"kept": (0, 1), "schedule": SHORT, "test_examples": 200, "device": "cpu", "progress": False}
    own = build(TASK, Network(2, 32, 2, 64), 10_003)
    ds = probe.probe_fillers({"net": lm}, TASK, seed=3, **options)
    assert tuned == {parameters_hash(lm): 2, parameters_hash(own): 2}
    alone = probe.probe_fillers({"own": own}, TASK, seed=3, random_trunk=False, **options)
    assert alone["trunk"].values.tolist() == ["own"]
    for name in ("auc", "stratum_accuracy"):
        np.testing.assert_array_equal(ds[name].sel(trunk="random"), alone[name].sel(trunk="own"))
    assert not np.allclose(*(ds["auc"].sel(trunk=t) for t in ("net", "random")))


@pytest.mark.parametrize("variant", probe.VARIANTS)
@pytest.mark.slow
def test_probes_go_on_where_they_were_stopped(variant, lm, tmp_path, monkeypatch):
    options = {"kept": (0, 1), "schedule": SHORT, "test_examples": 20, "device": "cpu", "progress": False}
    nets = {"net": lm}
    whole, weights = probe.probe_fillers(nets, TASK, variant=variant, **options), []
    finetune = probe.finetune

    def kept(*args, **rest):
        weights.append(parameters_hash(tuned := finetune(*args, **rest)))
        return tuned

    monkeypatch.setattr(probe, "finetune", kept)
    assert probe.probe_fillers(nets, TASK, variant=variant, **options)["auc"].equals(whole["auc"])
    assert len(weights) == 4
    for number, how in ((1, "kill"), (5, "signal"), (6, "kill"), (12, "kill")):
        store = tmp_path / f"{number}.zarr"
        call = partial(probe.probe_fillers, nets, TASK, variant=variant, store=store, checkpoint_every=0)
        with monkeypatch.context() as patch:
            taken = stopping(patch, number, how)
            with pytest.raises(KeyboardInterrupt if how == "signal" else Killed):
                call(**options)
            with pytest.raises(ValueError, match=r"belongs to another run; it differs in: .*schedule"):
                call(**{**options, "schedule": Schedule(steps=4, batch=8, rate=1e-2)})
            with pytest.raises(ValueError, match=r"it differs in: .*networks"):
                probe.probe_fillers({"net": build(TASK, Network(2, 32, 2, 64), 1)}, TASK, **options, store=store)
            before = len(weights)
            found = call(**options)
        assert len(taken) == 12, "finished steps were taken again"
        assert weights[before:] == weights[4 - len(weights[before:]) : 4], "other bits"
        for name, value in whole.variables.items():
            assert found[name].variable.equals(value), name
        assert found.attrs["fingerprint"] == whole.attrs["fingerprint"]
        assert call(**options).equals(whole)
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith((f"{number}.", "."))] == [store.name]
    with pytest.raises(ValueError, match="belongs to another run"):
        call(**{**options, "seed": 1})


def test_probes_refuse_what_they_cannot_do(lm):
    bad = (
        ({}, TASK, {}, "at least one network"),
        ({"a": lm}, Task("match2", n=4), {}, "defined for match3"),
        ({"a": lm}, TASK, {"variant": "thawed"}, "variant='thawed'"),
        ({"a": lm}, TASK, {"kept": (0.5, 2)}, "kept="),
        ({"a": lm}, Task(n=5), {}, "trained on another task"),
        ({"a": build(TASK, Network(1, 32, 2, 64))}, TASK, {}, "has one block"),
    )
    for trunks, task, options, message in bad:
        with pytest.raises(ValueError, match=message):
            probe.probe_fillers(trunks, task, progress=False, **options)
    with pytest.raises(ValueError, match="positions"):
        linear_probe(lm, TASK, positions=[99], examples=4)


def test_finetuning_is_that_of_a_loop(lm, monkeypatch):
    """Mean loss of the supervised words behind half of the fillers, clipped; the end of the network alone moves."""
    schedule = Schedule(steps=3, batch=8, rate=1e-2, warmup=0.5, clip=0.2, weight_decay=0.1)
    norms, clip = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, most: norms.append(float(clip(p, most))))
    found = probe.finetune(lm, TASK, 0.5, "frozen", schedule, 1)
    own = copy.deepcopy(lm).train()
    moving = [p for n, p in own.named_parameters() if n.startswith(("model.layers.1.", "model.norm.", "lm_head."))]
    adam = torch.optim.AdamW(moving, betas=schedule.betas, weight_decay=0.1)
    stream = TASK.stream("filler", 8, probe.PROBE_SEED + 1017, 8)
    for step in range(3):
        x = next(stream)
        ids, targets = (torch.cat([t[:, :5], t[:, 13:]], 1) for t in (x.ids, x.targets))
        logp = own(input_ids=ids).logits.log_softmax(-1)
        asked = (targets >= 0).nonzero().tolist()
        own.zero_grad()
        torch.stack([-logp[e, p, targets[e, p]] for e, p in asked]).mean().backward()
        assert norms[step] == pytest.approx(float(clip(moving, 0.2)), rel=1e-3)  # which Adam's steps do not show
        adam.param_groups[0]["lr"] = schedule.rate_at(step)
        adam.step()
    for (name, a), b in zip(found.named_parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_experiment_and_figure(tmp_path):
    found = dot_by_dot.run(replace(dot_by_dot.PRESETS["tiny"], device="cpu"), tmp_path / "nets")
    fig = compose(xr.DataTree.from_dict(found))
    assert [ax.get_ylabel() for ax in fig.axes][4] == "accuracy"
    own = found["training/match3-n3-d1-m5-strict/filler"]["accuracy"].sel(format="filler", stratum="all").values[0]
    assert any(np.array_equal(line.get_ydata(), own) for line in fig.axes[0].lines)
    with pytest.raises(ValueError, match=r"arms \['huge'\]"):
        dot_by_dot.run(replace(dot_by_dot.PRESETS["tiny"], arms=("huge",)))
    task, preset = Task(n=8), dot_by_dot.PRESETS["gpu10"]
    ratio = dot_by_dot.equal_flops(task, preset).steps / preset.schedule.steps
    assert ratio == pytest.approx((4.3 + 4.3 * 69 / 75) / 2 / 0.63, rel=0.03)
