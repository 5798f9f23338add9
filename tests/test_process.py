"""Numbers do not depend on what the process is set to: default dtype and device, autocast, modes, precision, seeds."""

import ast
import inspect
import random
from contextlib import ExitStack, contextmanager
from functools import cache

import numpy as np
import pytest
import torch
from conftest import ROOT
from every import every_measurement, fitted, models, texts
from stored_runs import assert_same
from tiny import byte_tokenizer, some_ids, some_prompts, tiny, tiny_lm

import tokinterp as ti
from tokinterp.fillers.tasks.contents import filler_prompts
from tokinterp.fillers.tasks.network import Network, as_model, build
from tokinterp.fillers.tasks.task import Task
from tokinterp.kernels import state
from tokinterp.kernels.state import evaluating, neutral, seeded

S = ti.Site
PACKAGE = ROOT / "tokinterp"
FACTORIES = {
    "arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace", "normal", "ones", "rand",
    "randint", "randn", "randperm", "range", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros",
}  # fmt: skip


@contextmanager
def hostile(dtype=torch.bfloat16, device="meta"):
    """A process that somebody else has set up, in every way that reaches numbers."""
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(dtype)
        stack.callback(torch.set_default_device, None)
        torch.set_default_device(device)
        stack.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
        torch.use_deterministic_algorithms(True)
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("medium")
        stack.enter_context(np.errstate(all="raise"))
        stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        stack.enter_context(torch.inference_mode())
        yield


def facts():
    """What ``hostile`` changes, and what a call must put back."""
    return (
        torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu"),
        torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, np.geterr(),
        torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(),
    )  # fmt: skip


def draws():
    """The caller's random numbers: of torch, numpy and Python."""
    return torch.random.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


def measured(model):
    """All measurements that need no task of their own."""
    asked = {}
    for kind in every_measurement():
        needed = [n for n, p in inspect.signature(kind).parameters.items() if p.default is p.empty]
        if kind.__module__.startswith("tokinterp.fillers."):
            continue
        asked[kind.__name__] = kind(**{n: fitted()[n] for n in needed})
    assert len(asked) > 22
    return ti.measure(model, texts(), asked, progress=False)


@cache
def reference():
    return measured(models()[0])


def modes(model):
    return [m.training for m in model.lm.modules()]


@pytest.mark.slow
def test_all_measurements_are_the_same_in_a_hostile_process_and_in_training_mode():
    want, loud = reference(), models()[1]
    before, flags, drawn = modes(loud), [p.requires_grad for p in loud.lm.parameters()], draws()
    assert any(before)
    assert not all(before)
    with hostile():
        inside = facts()
        got = measured(loud)
        assert facts() == inside
    assert_same(got, want, exact=True)
    assert modes(loud) == before
    assert [p.requires_grad for p in loud.lm.parameters()] == flags
    assert all(p.grad is None for p in loud.lm.parameters())
    assert draws() == drawn


@pytest.mark.slow
def test_no_number_of_the_package_takes_its_dtype_from_the_default(monkeypatch):
    want = reference()
    monkeypatch.setattr(state, "DTYPE", "bfloat16")
    assert_same(measured(models()[0]), want, exact=True)


def test_measurements_of_the_filler_tasks(monkeypatch):
    task = Task(n=4, d=1)
    model = as_model(build(task, Network(2, 32, 2, 64)), task)
    prompts = filler_prompts(task, model, 5)
    kinds = [k for k in every_measurement() if k.__module__.startswith("tokinterp.fillers.")]
    assert len(kinds) == 2
    asked = {k.__name__: k for k in kinds}

    def run():
        return ti.measure(model, prompts, {name: kind(4, 1) for name, kind in asked.items()}, progress=False)

    want = run()
    with hostile():
        assert_same(run(), want, exact=True)
    monkeypatch.setattr(state, "DTYPE", "bfloat16")
    assert_same(run(), want, exact=True)


def fits(model):
    """Everything that learns from a model, as arrays."""
    prompts, out = texts(), {}
    for method in ("softmax", "factored", "ridge", "lda"):
        probes = ti.erasure.fit_probes(model, prompts, layers=[1, 3], offsets=[0], method=method, progress=False)
        out[method] = probes.weight(3, 0)
    out["lens"] = ti.lens.fit_tuned_lens(model, prompts, layers=[1], steps=2, progress=False).weight
    decoder = ti.memory.fit_context_decoder(model, prompts, steps=2, rows=4, max_prefix=4, progress=False)
    out |= {f"decoder {k}": v for k, v in decoder.tensors().items()}
    return {k: v.detach().float().numpy() for k, v in out.items()}


@pytest.mark.slow
def test_all_fits_are_the_same_in_a_hostile_process_and_in_training_mode(monkeypatch):
    want, loud = fits(models()[0]), models()[1]
    before, drawn = modes(loud), draws()
    with hostile():
        inside = facts()
        got = fits(loud)
        assert facts() == inside
    assert modes(loud) == before
    assert draws() == drawn
    assert all(p.grad is None and p.requires_grad for p in loud.lm.parameters())
    monkeypatch.setattr(state, "DTYPE", "bfloat16")
    for found in (got, fits(models()[0])):
        for name, value in want.items():
            np.testing.assert_array_equal(found[name], value, name)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt_post_norm", "gemma2", "bloom", "qwen2_moe"])
def test_passes_and_heads_of_a_model_in_a_hostile_process(family):
    model, ids = tiny(family), some_ids()
    last = S("resid", 3)
    sites = [S(n, 1) for n in ("resid_mid", "pattern", "value", "mlp_out") if n in model.offers] + [last]

    def run():
        found = model.run(ids, sites)
        return [*found.values(), model.normed(found[last]), model.unembed(found[last])]

    want = run()
    assert not any(t.requires_grad for t in want)
    with hostile():
        got = run()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_mode_of_every_module_is_what_it_was():
    lm = tiny_lm("gpt2", resid_pdrop=0.5).train()
    lm.transformer.h[1].eval()
    before = [m.training for m in lm.modules()]
    model = ti.wrap(lm, id="was training")
    site = S("resid", 3)
    want = tiny("gpt2").run(some_ids(), [site])[site]
    assert torch.equal(model.run(some_ids(), [site])[site], want)
    assert torch.equal(model.unembed(want), tiny("gpt2").unembed(want))
    assert [m.training for m in lm.modules()] == before
    with pytest.raises(RuntimeError, match="stop"):
        with evaluating(lm):
            raise RuntimeError("stop")
    assert [m.training for m in lm.modules()] == before
    lm.eval()
    model.run(some_ids(), [site])
    assert not any(m.training for m in lm.modules())


def test_a_module_that_two_share_trains_again_when_the_last_is_done():
    net = torch.nn.Dropout(0.5)
    first, second = evaluating(net), evaluating(net)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not net.training
    second.__exit__(None, None, None)
    assert net.training


def test_gradients_reach_a_point_of_the_stream_that_asks_for_them():
    model = tiny()
    x = torch.ones(2, model.info.d_model, requires_grad=True)
    assert model.unembed(x).requires_grad
    assert not model.unembed(x.detach()).requires_grad
    with torch.no_grad():
        assert not model.unembed(x).requires_grad


def test_neutral_puts_back_what_was_set():
    before = facts()
    with hostile():
        inside = facts()
        with neutral():
            assert torch.get_default_dtype() == torch.float32
            assert torch.zeros(1).device.type == "cpu"
            assert not torch.is_autocast_enabled("cpu")
            assert not torch.is_inference_mode_enabled()
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert np.geterr()["divide"] == "warn"
        assert facts() == inside
        with pytest.raises(RuntimeError, match="stop"), neutral():
            raise RuntimeError("stop")
        assert facts() == inside
    assert facts() == before


def test_matrix_precision_is_full_inside_and_restored_outside():
    place = torch.backends.cuda.matmul
    before = place.fp32_precision
    place.fp32_precision = "tf32"
    try:
        with neutral():
            assert place.fp32_precision == "ieee"
        assert place.fp32_precision == "tf32"
    finally:
        place.fp32_precision = before


def test_seeded_numbers_are_those_of_the_seed_and_the_callers_go_on():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(7)
    drawn = draws()
    with seeded(5):
        assert torch.equal(torch.rand(3), want)
    assert draws() == drawn


def test_making_models_leaves_random_numbers_alone():
    drawn = draws()
    ti.untrained(tiny(), seed=3)
    ti.wrap(tiny("gpt2").lm, byte_tokenizer(), id="again")
    task = Task(n=4, d=1)
    as_model(build(task, Network(2, 32, 2, 64)), task)
    some_prompts([5, 6])
    assert draws() == drawn


@pytest.mark.parametrize(
    "path", sorted([*PACKAGE.rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]),
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)  # fmt: skip
@pytest.mark.slow
def test_every_new_tensor_says_dtype_and_device(path):
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        module = node.func.value
        if not (isinstance(module, ast.Name) and module.id == "torch" and node.func.attr in FACTORIES):
            continue
        said = {k.arg for k in node.keywords}
        if None in said or (node.func.attr == "as_tensor" and "device" in said):
            continue
        missing = {"dtype", "device"} - said
        assert not missing, f"line {node.lineno}: {ast.get_source_segment(source, node)} does not say {missing}"
