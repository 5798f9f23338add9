"""The loop over batches: memory that runs out, and what is not finite."""

import gc

import numpy as np
import pytest
import torch
from stored_runs import LENGTHS, measured
from tiny import Norms, Spread, some_prompts

import tokinterp as ti
from tokinterp.run import loop
from tokinterp.run.batch import Batch
from tokinterp.run.stream import AllNonfiniteError

S = ti.Site


# -- not finite -----------------------------------------------------------------------------------------------
def blow_up(ids, mask):
    """Every position of prompts with 17 or 28 tokens."""
    n = mask.sum(1, keepdim=True)
    return ((n == 17) | (n == 28)).expand_as(mask)


@pytest.mark.parametrize("batch_tokens", [30, 10_000])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3e38])
@pytest.mark.slow
def test_prompts_that_are_not_finite_are_named_and_left_out(value, batch_tokens, tmp_path, caplog):
    which = {"norms": Norms(), "spread": Spread(), "lens": ti.lens.LogitLens(tokens=None, top=2)}
    edit = ti.edits.replace(S("resid", 1), torch.full((32,), value), blow_up)
    if value == 3e38:  # finite where it is put; the sum with the next block's output is not
        edit = ti.edits.add(S("resid", 2), torch.full((32,), value), blow_up)
        edits = [ti.edits.replace(S("resid", 1), torch.full((32,), value), blow_up), edit]
    else:
        edits = [edit]
    run = measured(which=which, edits=edits, batch_tokens=batch_tokens, store=tmp_path / "run.zarr", checkpoint_every=0)
    layer = run["prompts"]["first_nonfinite_layer"].values
    bad = [2, 6]
    assert np.flatnonzero(layer >= 0).tolist() == bad
    assert (layer[bad] == (2 if value == 3e38 else 1)).all()
    assert "2 of 7 prompts give NaN or infinite activations and are left out (prompt 2: from layer" in caplog.text
    good = [i for i in range(7) if i not in bad]
    assert sorted(set(run["norms"]["prompt"].values.tolist())) == good
    expected = measured(some_prompts(LENGTHS)[good], which=which)
    for name in which:
        for v in expected[name].data_vars:
            a, b = run[name][v].values, expected[name][v].values
            if a.shape == b.shape:
                np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=f"{name} {v}")
            else:
                keep = run[name]["prompt"].isin(good).values if run[name][v].dims[0] == "prompt" else slice(None)
                np.testing.assert_allclose(a[keep], b, rtol=2e-4, atol=2e-5, err_msg=f"{name} {v}")
    ti.check(run)


@pytest.mark.parametrize("checkpoint_every", [0, 1000])
def test_all_prompts_not_finite_is_an_error(checkpoint_every, tmp_path):
    edits = [ti.edits.replace(S("resid", 1), torch.full((32,), float("nan")))]
    for store in (None, tmp_path / "run.zarr"):
        with pytest.raises(
            AllNonfiniteError, match=r"all 7 prompts .* \(prompt 0: from layer 1 on\): look at the weights and edits"
        ):
            measured(
                which={"norms": Norms()}, edits=edits, store=store, checkpoint_every=checkpoint_every, batch_tokens=60
            )
    assert list(tmp_path.iterdir()) == [], "something half-written was left"


# -- out of memory --------------------------------------------------------------------------------------------
class Hungry(Norms):
    """Fails like a GPU of too little memory for batches of more tokens than fit, at a chosen reading."""

    fits = 64
    failures = 0

    def update(self, batch):
        if batch.ids.numel() > self.fits:
            type(self).failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        super().update(batch)


@pytest.mark.parametrize("store", [False, True])
def test_batches_are_halved_when_memory_runs_out(store, tmp_path, capsys):
    class Mine(Hungry):
        failures = 0

    prompts = some_prompts([30, 30, 8, 8, 8, 8, 8, 8])
    options = {"store": tmp_path / "run.zarr", "checkpoint_every": 0} if store else {}
    run = measured(prompts, which={"norms": Mine(), "spread": Spread()}, batch_tokens=240, **options)
    assert Mine.failures == 2  # 240 and 120 do not fit, 60 does
    assert "batches of 60 tokens from here on" in capsys.readouterr().err
    small = measured(prompts, which={"norms": Norms(), "spread": Spread()}, batch_tokens=60)
    for name in ("norms", "spread"):
        for v in small[name].data_vars:
            np.testing.assert_array_equal(run[name][v], small[name][v], f"{name} {v}")


def test_memory_running_out_later_keeps_what_is_finished(tmp_path):
    """The failure comes after a checkpoint, in the second reading: only what follows is cut smaller."""

    class Later(Spread):
        left = 1

        def update(self, batch):
            if self.reading == 1 and "square" in self.sums and self.left:
                type(self).left -= 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().update(batch)

    run = measured(which={"spread": Later()}, batch_tokens=60, store=tmp_path / "run.zarr", checkpoint_every=0)
    assert Later.left == 0
    plain = measured(which={"spread": Spread()}, batch_tokens=60)
    for v in plain["spread"].data_vars:
        np.testing.assert_allclose(run["spread"][v], plain["spread"][v], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("held", "times"), [(0, 2), (3 * 30 * 32 * 4, 2), (2**27, 1)])
def test_few_prompts_are_run_once_for_all_readings(held, times, monkeypatch):
    plain = measured(which={"spread": Spread()}, batch_tokens=60)
    ran, run = [], loop.capture
    monkeypatch.setattr(loop, "HELD", held)  # nothing, the first batch, all
    monkeypatch.setattr(loop, "capture", lambda m, p, names, *a, **o: ran.extend(names) or run(m, p, names, *a, **o))
    again = measured(which={"spread": Spread()}, batch_tokens=60)
    assert sorted(ran) == sorted(times * [*range(len(LENGTHS))])
    for v in plain["spread"].data_vars:
        np.testing.assert_array_equal(again["spread"][v], plain["spread"][v])


def test_what_is_held_is_let_go_when_it_is_too_much(monkeypatch):
    held = []

    class Watched(Spread):
        def update(self, batch):
            held.append(sum(type(x) is Batch and x is not batch for x in gc.get_objects()))
            super().update(batch)

    monkeypatch.setattr(loop, "HELD", 2 * 60 * 32 * 4)  # two batches
    before = sum(type(x) is Batch for x in gc.get_objects())
    measured(which={"spread": Watched()}, batch_tokens=60)
    assert [n - before for n in held] == [0, 1, 0, 0, 0, 0, 0, 0]


def test_a_run_that_reads_once_holds_no_batch_whether_it_keeps_sites_or_looks_at_them():
    held = []

    class Watched(ti.attention.AttentionMass):
        def update(self, batch):
            held.append(sum(type(x) is Batch and x is not batch for x in gc.get_objects()))
            super().update(batch)

    before = sum(type(x) is Batch for x in gc.get_objects())
    measured(which={"mass": Watched()}, batch_tokens=60)
    assert len(held) == 5
    assert {n - before for n in held} == {0}


def test_what_is_held_is_activations_not_what_was_worked_out_of_them():
    class Watched(Spread):
        def update(self, batch):
            assert not batch.shared
            batch.once("much", lambda: batch.resid(self.info.n_layers).double())
            super().update(batch)

    measured(which={"spread": Watched()}, batch_tokens=60)


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("held", [0, 2**27])
def test_a_prompt_that_was_left_out_takes_no_part_in_any_reading(held, stops, tmp_path, monkeypatch):
    """All that the second reading looks at is finite; what another measurement looks at in the first is not."""
    seen = {0: [], 1: []}
    stop = [stops]

    class Early(Spread):
        def sites(self, info):
            return [S("resid", 0)]

        def update(self, batch):
            if self.reading == 1 and stop and stop.pop():
                raise KeyboardInterrupt
            seen[self.reading] += batch.numbers
            rows = batch.rows(0).double()
            self.add("total" if self.reading == 0 else "square", rows.sum(0) if self.reading == 0 else rows.sum())
            self.add("count", torch.tensor(len(rows), device=batch.device))
            self.append(prompt=batch.tokens.prompt, position=batch.tokens.position, token_id=batch.tokens.ids,
                        far=rows.sum(1))  # fmt: skip

    monkeypatch.setattr(loop, "HELD", held)
    edit = ti.edits.replace(S("resid", 1), torch.full((32,), torch.nan), blow_up)

    def run():
        measured(which={"early": Early(), "norms": Norms()}, edits=[edit], batch_tokens=60, checkpoint_every=0,
                 store=tmp_path / "run.zarr")  # fmt: skip

    if stops:
        with pytest.raises(KeyboardInterrupt):
            run()
    run()
    assert sorted(seen[0]) == sorted(seen[1]) == [0, 1, 3, 4, 5]


def test_one_prompt_that_does_not_fit_is_an_error(tmp_path):
    class Mine(Hungry):
        fits = 20

    with pytest.raises(
        torch.OutOfMemoryError, match="too little memory for one prompt of 30 tokens: use shorter prompts"
    ):
        measured(which={"norms": Mine()}, store=tmp_path / "run.zarr")
    assert list(tmp_path.iterdir()) == []
