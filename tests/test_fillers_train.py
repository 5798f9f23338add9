"""Training on the synthetic tasks: it learns, it resumes bit for bit, and it says what it did."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file
from torch.nn import functional

import tokinterp as ti
from tokinterp.fillers.evaluation import evaluate, loss_sum, roc_auc
from tokinterp.fillers.last import last_evaluation
from tokinterp.fillers.network import Network, as_model, build, flops_per_example, parameters_hash
from tokinterp.fillers.schedule import Schedule
from tokinterp.fillers.tasks import Samples, Task
from tokinterp.fillers.train import Run, load_networks, train
from tokinterp.fitted import read_note
from tokinterp.fitting import KIND

TINY = Network(2, 32, 2, 64)
TASK = Task(n=3, d=1, m=5, fillers="cot")


def quick(task=TASK, mixture=None, steps=6, **options):
    schedule = options.pop("schedule", Schedule(steps=steps, batch=16, rate=1e-3, evaluations=3))
    options = {"network": TINY, "test_examples": 40, "device": "cpu", "progress": False, **options}
    return train(task, mixture, schedule=schedule, **options)


@pytest.mark.slow
def test_a_small_network_beats_the_majority_in_seconds():
    task = Task(n=3, d=1, m=3)
    schedule = Schedule(steps=100, batch=32, rate=3e-3, evaluations=2)
    ds, networks = quick(task, {"parallel": 1}, network=Network(2, 64, 4, 128), schedule=schedule, test_examples=500)
    assert float(ds["majority"][0]) == 0.5
    last = last_evaluation(ds).squeeze()
    assert float(last["accuracy"].sel(stratum="all")) > 0.9
    assert float(last["auc"]) > 0.95
    # What the Dataset says is what the network answers.
    test = task.test_set("parallel", 500, 1)
    logits = networks[0](input_ids=test.sequences.ids).logits
    said = logits[torch.arange(500), test.sequences.answer_at].argmax(-1)
    assert float((said == test.answer).double().mean()) == float(last["accuracy"].sel(stratum="all"))
    true, said_true = test.answer == task.words.true, said == task.words.true
    assert float(last["true_bias"]) == pytest.approx(float(said_true.double().mean() - true.double().mean()))
    parts = last["accuracy"].isel(stratum=slice(1, None)).fillna(0) * ds["count"].isel(format=0, stratum=slice(1, None))
    assert float(parts.sum()) == pytest.approx(500 * float(last["accuracy"].sel(stratum="all")))


def test_resuming_gives_the_same_bits(tmp_path):
    def run(folder):
        return quick(seeds=(0, 1), steps=9, folder=folder, save_seconds=0)

    class Killed(Exception):
        pass

    whole, straight = run(tmp_path / "a")
    step = Run.take_step

    def dies(self, batches):
        step(self, batches)
        if (self.seed, self.step) == (1, 5):
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "take_step", dies)
        with pytest.raises(Killed):
            run(tmp_path / "b")
    state = tmp_path / "b" / "seed-1.safetensors.partial" / "state.safetensors"
    assert read_note(state, KIND, "state")["facts"]["notes"]["step"] == 4
    with pytest.raises(ValueError, match="is being trained or unfinished"):
        load_networks(tmp_path / "b")
    again, resumed = run(tmp_path / "b")
    for seed in (0, 1):
        assert parameters_hash(straight[seed]) == parameters_hash(resumed[seed])
    xr.testing.assert_equal(whole.drop_vars("seconds"), again.drop_vars("seconds"))
    assert whole.attrs["fingerprint"] == again.attrs["fingerprint"]
    a, b = (load_file(tmp_path / x / "seed-1.safetensors") for x in "ab")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert sorted(f.name for f in (tmp_path / "b").iterdir()) == ["seed-0.safetensors", "seed-1.safetensors"]
    task, networks = load_networks(tmp_path / "b")
    assert task == TASK
    assert parameters_hash(networks[1]) == parameters_hash(straight[1])
    assert parameters_hash(straight[0]) != parameters_hash(straight[1])


def test_a_folder_of_another_run_and_a_damaged_one_are_refused(tmp_path):
    quick(steps=2, folder=tmp_path)
    with pytest.raises(ValueError, match=r"belongs to another run; it differs in: schedule \(steps\)"):
        quick(steps=3, folder=tmp_path)
    file = tmp_path / "seed-0.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 0x10
    for damaged in (bytes(raw), b"broken"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            quick(steps=2, folder=tmp_path)
        with pytest.raises(ValueError, match="is damaged"):
            load_networks(tmp_path)
    with pytest.raises(ValueError, match="has no trained networks"):
        load_networks(tmp_path / "nothing")


def test_result_follows_the_conventions(tmp_path):
    ds, _ = quick(mixture={"filler": 1, "parallel": 1, "serial": 1, "none": 1}, seeds=(3, 5))
    assert ds["accuracy"].dims == ("seed", "step", "format", "stratum")
    assert ds["seed"].values.tolist() == [3, 5]
    assert ds["examples_seen"].sel(format="none").values.tolist() == [8, 16, 24]
    assert json.loads(ds.attrs["parameters"])["task"]["n"] == 3
    xr.testing.assert_equal(ti.read(ti.write(ds, tmp_path / "a.zarr")).to_dataset(), ds)
    names = [name for name, _, _ in ti.plots.overview(ds)]
    assert names == ["learning", "strata"]


@pytest.mark.slow
def test_match2_is_learned_with_its_own_loss():
    task = Task("match2", n=4, d=1, m=3)
    schedule = Schedule(steps=60, batch=32, rate=3e-3, evaluations=2)
    ds, _ = quick(task, {"none": 0.5, "filler": 0.25, "parallel": 0.25}, schedule=schedule)
    loss = ds["loss"].isel(seed=0)
    assert (loss.isel(step=-1) < loss.isel(step=0)).all()
    assert ds["auc"].isnull().all()
    assert ds["accuracy"].sel(stratum="all").notnull().all()


@pytest.mark.parametrize("task", [Task(n=4, d=2, fillers=3), Task("match2", n=4, d=2)])
@pytest.mark.parametrize("form", ["none", "filler", "parallel"])
def test_the_input_gets_no_gradient(task, form):
    x = task.sample(form, 5, torch.Generator().manual_seed(0)).sequences
    logits = torch.randn(*x.ids.shape, len(task.words), requires_grad=True)
    loss_sum(logits, x.targets, task).backward()
    given_words = task.n + (1 if task.family == "match3" else 2)
    assert logits.grad is not None
    assert (logits.grad[:, : given_words - 1] == 0).all()
    assert (logits.grad[:, given_words - 1 :].abs().sum(-1) > 0).all()


def test_loss_is_that_of_a_loop():
    task = Task("match2", n=4, d=2)
    x = task.sample("parallel", 2, torch.Generator().manual_seed(0)).sequences
    logits = torch.randn(*x.ids.shape, len(task.words))
    total = 0.0
    w = task.words
    for e, p in (x.targets >= 0).nonzero().tolist():
        hot = torch.zeros(len(w))
        word = int(x.targets[e, p])
        if word < len(w):
            hot[word] = 1
        else:
            for c, digit in enumerate(w.digits(torch.tensor(word)).tolist()):
                hot[w.digit + 10 * c + digit] = 1
        total += float(functional.binary_cross_entropy_with_logits(logits[e, p], hot))
    assert float(loss_sum(logits, x.targets, task)) == pytest.approx(total, rel=1e-5)


def test_auc_agrees_with_scikit_learn():
    from sklearn.metrics import roc_auc_score

    score = torch.randint(0, 12, (300,), generator=torch.Generator().manual_seed(0)).double()
    positive = torch.rand(300, generator=torch.Generator().manual_seed(1)) < 0.3
    assert roc_auc(score, positive) == pytest.approx(roc_auc_score(positive.numpy(), score.numpy()), abs=1e-12)
    assert roc_auc(score, torch.ones(300, dtype=torch.bool)) is None


def test_evaluation_looks_at_the_answer_alone_and_not_at_padding():
    task = Task(n=5, d=2, m=5)
    test = task.test_set("serial", 60)
    lm = build(task, TINY, 0)
    alone = []
    for e in range(60):
        at = int(test.sequences.answer_at[e])
        logits = lm(input_ids=test.sequences.ids[e : e + 1, : at + 1]).logits[0, -1]
        alone.append(int(logits.argmax()) == int(test.answer[e]))
    assert evaluate(lm, task, test, batch=7).accuracy[0] == pytest.approx(np.mean(alone))
    half = Samples(type(test.sequences)(*(t[:30] for t in test.sequences)), *(
        getattr(test, k)[:30] for k in ("answer", "rows", "stratum")))  # fmt: skip
    assert sum(evaluate(lm, task, half).count[1:]) == 30


def test_network_has_the_published_shape():
    lm = build(Task(n=8), Network(), 0)
    blocks = sum(p.numel() for p in lm.model.layers.parameters())
    assert blocks / 1e6 == pytest.approx(9.44, abs=0.01)
    for n, filler, none in ((4, 1.3, 0.40), (8, 4.3, 0.63), (14, 12.6, 0.97)):
        task = Task(n=n, d=3)
        found = [flops_per_example(task, Network(), form) / 1e9 for form in ("filler", "none")]
        assert found == pytest.approx([filler, none], rel=0.03)
    before = torch.get_rng_state()
    build(TASK, TINY, 1)
    assert torch.equal(before, torch.get_rng_state())


def test_schedule_is_the_published_one():
    s = Schedule.paper()
    assert s.steps == 5 * 10_000_000 // 256
    first = round(0.05 * s.steps)
    assert s.rate_at(0) == pytest.approx(1e-4 / (0.05 * s.steps))
    assert s.rate_at(first + 1) == pytest.approx(0.95e-4, rel=1e-3)
    assert s.rate_at(s.steps - 1) < 1e-9
    assert len(s.evaluate_at) == 25
    assert s.evaluate_at[-1] == s.steps


def test_a_step_is_that_of_a_loop():
    """Mean loss over the supervised words of all formats, clipped, AdamW at the rate of the step, data of the seed."""
    task = Task(n=4, d=2, m=5)
    schedule = Schedule(steps=10, batch=8, rate=1e-2, warmup=0.5, clip=0.2, weight_decay=0.1)
    run = Run(task, {"filler": 5, "none": 3}, TINY, schedule, 3, torch.device("cpu"), False)
    lm = build(task, TINY, 3).train()
    adam = torch.optim.AdamW(lm.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    ours, theirs = run.streams(), [task.stream(form, n, 3, 8) for form, n in (("filler", 5), ("none", 3))]
    for step in range(3):
        run.take_step([next(s) for s in ours])
        losses = []
        for x in [next(s) for s in theirs]:
            logp = lm(input_ids=x.ids).logits.log_softmax(-1)
            losses += [-logp[e, p, x.targets[e, p]] for e, p in (x.targets >= 0).nonzero().tolist()]
        torch.stack(losses).mean().backward()
        norm = torch.stack([p.grad.square().sum() for p in lm.parameters() if p.grad is not None]).sum().sqrt()
        for p in lm.parameters():
            assert p.grad is not None
            p.grad *= min(1.0, 0.2 / float(norm))
        adam.param_groups[0]["lr"] = 1e-2 * (step + 1) / 5
        adam.step()
        adam.zero_grad()
    for (name, a), b in zip(run.lm.named_parameters(), lm.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3, msg=name)


def test_the_first_format_says_when_to_stop(monkeypatch):
    from tokinterp.fillers import evaluation
    from tokinterp.fillers import train as training

    right = {"none": 0.2, "filler": 0.9}

    def fake(lm, task, test):
        share = right["filler" if (test.sequences.ids == task.words.filler).any() else "none"]
        return evaluation.Answers([share] * len(task.strata), [1] * len(task.strata), None, None, 1.0)

    monkeypatch.setattr(training, "evaluate", fake)
    schedule = Schedule(steps=6, batch=16, evaluations=3, stop_at=0.5)
    for forms, steps in ((("filler", "none"), 2), (("none", "filler"), 6)):
        ds, _ = quick(mixture=dict.fromkeys(forms, 1), schedule=schedule)
        assert ds["seconds"].notnull().sum() == steps // 2
        assert int(last_evaluation(ds)["steps_taken"][0]) == steps
        assert ds["step"].values.tolist()[: steps // 2] == [2, 4, 6][: steps // 2]


def test_a_solved_task_stops_early():
    ds, _ = quick(mixture={"none": 1}, schedule=Schedule(steps=6, batch=16, evaluations=3, stop_at=0.0))
    assert ds["seconds"].notnull().sum() == 1
    assert int(last_evaluation(ds)["steps_taken"][0]) == 2


def test_the_wrapped_model_gives_the_logits_of_the_network():
    task = Task(n=4, d=2)
    lm = build(task, TINY, 0)
    model = as_model(lm, task)
    ids = task.test_set("filler", 5).sequences.ids
    last = model.run(ids, [ti.Site("resid", 2)])[ti.Site("resid", 2)]
    torch.testing.assert_close(model.unembed(last)[..., : len(task.words)], lm(input_ids=ids).logits)
    assert (model.unembed(last)[..., len(task.words) :] < -50).all()
    prompts = ti.Prompts.from_ids(ids.tolist(), model)
    assert prompts.strings(0)[4:6] == ["P", "."]
    assert prompts.special(0).sum() == 4 + 1 + 2
    with pytest.raises(ValueError, match=r"m\*\*d = 1000000 row words"):
        as_model(lm, Task(n=4, d=6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixture": {"dots": 1}}, "match3 has no format 'dots'"),
        ({"mixture": {"none": 0}}, "the share 0"),
        ({"mixture": {}}, "the mixture is empty"),
        ({"mixture": {"none": 1, "filler": 1e-9}}, "without an example"),
        ({"seeds": ()}, "seeds="),
        ({"seeds": (1, 1)}, "each once"),
        ({"test_examples": 1}, "test_examples=1"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        quick(**options)
    with pytest.raises(ValueError, match="even width"):
        Network(d_model=30, n_heads=4)
    with pytest.raises(ValueError, match="fill no batch"):
        Schedule(train_examples=5)
