"""Steps of the bundled models' training: batched Muon, tensor rates, falling back, and going on after the end."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from experiments.bundled.forward import loss_function
from experiments.bundled.steps import BatchedMuon, Step, optimisers, rates_on
from experiments.bundled.train import PRESETS, Preset, Windows, build, export, rate, train

TINY = Preset(
    2, 32, 2, 48, 300, 512, (256, 256, 256), 0.02, 3e-3, 0.1, 4, 1000, 1.0, 256, "cpu", context=256, save_every=0.0
)


@pytest.fixture
def data(tmp_path):
    """Made-up tokens in two parts, and a tokenizer of 300 words."""
    draw = np.random.default_rng(0)
    for i in range(2):
        np.save(tmp_path / f"train_{i:02d}.npy", draw.integers(3, 300, 4096).astype(np.uint16))
    np.save(tmp_path / "val.npy", draw.integers(3, 300, 2048).astype(np.uint16))
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(300)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def test_batched_muon_takes_the_steps_of_the_librarys():
    draw = torch.Generator().manual_seed(0)
    shapes = [(6, 6), (6, 10), (6, 6), (10, 6), (6, 10)]
    start = [torch.randn(s, generator=draw) for s in shapes]
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    options = {"weight_decay": 0.1, "momentum": 0.95}
    one = BatchedMuon(ours, lr=0.02, **options)
    one.param_groups[0]["lr"] = torch.tensor(0.02)
    other = torch.optim.Muon(theirs, lr=0.02, **options)
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=draw)
            q.grad = p.grad.clone()
        one.step()
        other.step()
    for p, q, x in zip(ours, theirs, start, strict=True):
        assert (q - x).norm() > 0.05
        assert (p - q).norm() < 0.01 * (q - x).norm()  # products in bfloat16, in another order
    assert one.state_dict()["state"].keys() == other.state_dict()["state"].keys()


def test_a_step_is_the_mean_over_its_parts_at_the_rates_that_it_is_given():
    ids = torch.randint(0, 300, (4, 33), generator=torch.Generator().manual_seed(1))
    found = []
    for micro in (32, 10_000):
        model = build(TINY)
        opts = optimisers(model, 0.02, 3e-3, 0.1)
        plain = loss_function(model, False)
        take = Step(model, opts, plain, plain, micro)
        losses = [float(take(ids, 0.5)) for _ in range(3)]
        assert [float(o.param_groups[0]["lr"]) for o in opts] == pytest.approx([0.01, 0.0015])
        before = model.model.embed_tokens.weight.detach().clone()
        take(ids, 0.0)
        assert torch.equal(before, model.model.embed_tokens.weight)
        found.append(losses)
    assert found[0][-1] < found[0][0]
    assert found[0] == pytest.approx(found[1], rel=2e-2)


def test_a_loss_that_does_not_compile_is_replaced_and_said():
    model = build(TINY)

    def broken(ids):
        raise RuntimeError("no compiler\nhere")

    plain = loss_function(model, False)
    take = Step(model, optimisers(model, 0.02, 3e-3, 0.1), broken, plain, 512)
    assert float(take(torch.zeros(1, 17, dtype=torch.long), 1.0)) > 0
    assert take.notes == ["not compiled: RuntimeError: no compiler"]
    assert take.loss is plain


def test_rates_are_tensors_again_after_a_state_was_loaded():
    model = build(TINY)
    opts = optimisers(model, 0.02, 3e-3, 0.1)
    state = opts[0].state_dict()
    state["param_groups"][0]["lr"] = 0.5  # as an earlier version wrote it
    opts[0].load_state_dict(state)
    rates_on(opts, torch.device("cpu"))
    assert torch.is_tensor(opts[0].param_groups[0]["lr"])
    assert float(opts[0].param_groups[0]["lr"]) == 0.5


def test_windows_go_through_the_end_of_an_epoch(data):
    windows = Windows(data, 0)
    assert len(windows.stream) == 8192
    rows = torch.cat([windows.batch(5 * 1024, 512) for _ in range(4)])
    assert rows.shape == (40, 513)
    assert (rows[:, 0] == 0).all()
    first, second = rows[:16, 1:].flatten(), rows[16:32, 1:].flatten()
    assert np.array_equal(np.sort(first.numpy()), np.sort(windows.stream.astype(int)))
    assert np.array_equal(np.sort(second.numpy()), np.sort(first.numpy()))
    assert not torch.equal(first, second)
    again = Windows(data, 0)
    again.place = 20 * 512
    assert torch.equal(again.batch(1024, 512), rows[20:22])


def test_words_above_32767_stay_what_they_are(tmp_path):
    np.save(tmp_path / "train_00.npy", np.full(2048, 65_000, np.uint16))
    assert set(Windows(tmp_path, 0).batch(512, 256)[:, 1:].flatten().tolist()) == {65_000}


@pytest.mark.slow
def test_a_finished_run_goes_on_with_a_new_plan(data, tmp_path):
    def go(steps, more=True):
        return train(tmp_path / "run", TINY, None, steps, 2, None, 0.5, False, True, data=data, more=more)

    one = go(6)
    assert (one["step"], one["plan"], one["restarts"]) == (6, [[4, 6, 1.0]], [])
    assert go(6, more=False)["step"] == 6
    two = go(8)
    assert (two["step"], two["plan"], two["restarts"]) == (14, [[12, 14, 1.0]], [6])
    assert two["tokens"] == 14 * 512
    assert two["seconds"] > one["seconds"]
    assert [rate(s, 4, two["plan"], two["begin"]) for s in (6, 9, 11, 13)] == [0.25, 1.0, 1.0, 0.5]
    export(tmp_path / "run", TINY, "final", tmp_path / "model", data)
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_the_clock_of_a_call_ends_it_also_before_a_plan_is_made(data, tmp_path):
    state = train(tmp_path / "run", TINY, 1e-4, None, None, None, 0.5, False, True, data=data, more=True)
    assert state["step"] <= 5
    assert (tmp_path / "run" / "resume.pt").exists()
    assert (tmp_path / "run" / "final.pt").exists()


def test_presets_for_a_gpu_are_what_they_say():
    narrow = PRESETS["narrow"]
    assert (narrow.vocab, narrow.context) == (512, 512)
    assert 64 <= narrow.d_model <= 96
    assert narrow.save_every == PRESETS["full"].save_every == 60
    for preset in PRESETS.values():
        assert preset.d_model % (2 * preset.heads) == 0
        assert max(preset.lengths) == preset.context
        assert all(preset.tokens % n == 0 and 1024 % n == 0 for n in preset.lengths)
