"""One computation, one model: whatever changes it meanwhile is noticed, by every function that runs models."""

import copy
import inspect
import signal

import pytest
import torch
from calls import CALLS, World, public
from planted import PlantedModel
from tiny import byte_tokenizer, some_prompts, tiny_lm

import tokinterp as ti
from tokinterp.embeddings import frames, indicators
from tokinterp.models.hooks import HookedLM
from tokinterp.models.steady import ModelChangedError, check_steady, current, steady
from tokinterp.run.checkpoint import Checkpoint

PROMPTS = some_prompts([12] * 6)
ONE_PASS = {
    "build_items", "capture", "copy_prompts", "distance_conditions", "project_out", "read_feucht2024",
    "repetition_conditions", "steer", "stream", "swap", "untrained", "word_lists", "word_tokens",
}  # fmt: skip
"""They run the model once or not at all, or the caller decides between passes."""


def fresh():
    return ti.wrap(tiny_lm(), byte_tokenizer(), id="m")


def double(model):
    with torch.no_grad():
        model.lm.model.layers[1].mlp.up_proj.weight.mul_(2)


def test_a_model_is_looked_at_as_it_is_now():
    model = fresh()
    before = model.info.identity
    next(iter(model.lm.parameters())).data[0, 0] += 1
    assert model.info.identity == before
    assert current(model).identity != before
    assert model.info.identity == current(model).identity


def test_what_cannot_look_has_the_info_that_it_was_given():
    model = PlantedModel()
    assert current(model) is model.info
    assert steady(current)(model) is model.info


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("weights", double),
        ("config", lambda m: setattr(m.lm.config, "rms_norm_eps", 0.5)),
        ("state", lambda m: setattr(m.lm.model.layers[0].self_attn, "scaling", 0.1)),
        ("hooks", lambda m: m.lm.model.layers[0].register_forward_hook(lambda _m, _a, out: out * 2)),
    ],
)
@pytest.mark.parametrize("given", ["model", "network", "list", "by name"])
def test_a_change_between_beginning_and_end_is_refused(what, change, given):
    model = fresh()
    value = {"model": model, "network": model.lm, "list": [1, model], "by name": {"a": {"b": model.lm}}}[given]

    @steady
    def compute(value, act):
        act(model)
        return 1

    assert compute(value, lambda m: m.lm.train() and m.lm.eval()) == 1
    with pytest.raises(ModelChangedError, match=f"^the {what} of (m|Llama.*) changed while .* measure it again$"):
        compute(value, act=change)
    assert compute(value, lambda m: None) == 1, "a change before the call is none"


def test_a_change_is_seen_inside_and_what_else_goes_wrong_is_said_first():
    model, seen = fresh(), []

    @steady
    def compute(model, end):
        inner(model)
        double(model)
        for look in (check_steady, lambda: current(model), lambda: inner(model)):
            try:
                look()
            except ModelChangedError:
                seen.append(look)
        raise end

    @steady
    def inner(model):
        current(model)

    with pytest.raises(KeyError):
        compute(model, KeyError())
    assert len(seen) == 3
    check_steady()
    inner(model)


def fit_probes(model, store):
    return ti.erasure.fit_probes(
        model, PROMPTS, layers=[0, 2], offsets=[0], method="ridge", store=store, batch_tokens=24,
        checkpoint_every=0, progress=False,
    )  # fmt: skip


def fit_tuned_lens(model, store):
    return ti.lens.fit_tuned_lens(
        model, PROMPTS, layers=[1], steps=3, step_tokens=24, check_tokens=24, batch_tokens=24, store=store,
        checkpoint_every=0, progress=False,
    )  # fmt: skip


def fit_context_decoder(model, store):
    return ti.memory.fit_context_decoder(
        model, PROMPTS, steps=3, rows=8, max_prefix=4, warmup=1, store=store, checkpoint_every=0, progress=False
    )


@pytest.mark.parametrize("fit", [fit_probes, fit_tuned_lens, fit_context_decoder])
@pytest.mark.parametrize("kept", [True, False])
def test_a_fit_of_two_models_is_not_kept(fit, kept, tmp_path, monkeypatch):
    step, model = Checkpoint.step, fresh()

    def changing(self, *args):
        step(self, *args)
        if self.path is None or list(self.partial.glob("*.safetensors")):
            double(model)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "step", changing)
        with pytest.raises(RuntimeError, match="the weights of m changed while it was measured"):
            fit(model, tmp_path / "fit" if kept else None)
    assert not list(tmp_path.iterdir())
    assert fit(model, tmp_path / "fit") is not None
    assert [p.name for p in tmp_path.iterdir()] == ["fit"]


def test_nothing_is_kept_of_a_run_that_changes_and_is_stopped(tmp_path, monkeypatch):
    """What a signal lets a run keep is of one model too."""
    model = fresh()

    class Changes(ti.geometry.TokenNorms):
        tried, batches = False, 0

        def update(self, batch):
            super().update(batch)
            self.batches += 1
            if self.batches == 2:
                double(model)
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(ModelChangedError):
        ti.measure(
            model, PROMPTS, {"n": Changes(tokens=0)}, store=tmp_path / "run.zarr", batch_tokens=24, progress=False
        )
    assert not list(tmp_path.iterdir())


# -- every public function ------------------------------------------------------------------------------------
def runs_models():
    found = []
    for name, function in public():
        own = inspect.signature(function).parameters
        if not isinstance(function, type) and {"model", "lm", "trunks", "one"} & set(own):
            found.append((name, function))
    return found


def test_every_public_function_that_runs_models_is_steady():
    names = {name for name, f in runs_models() if not getattr(f, "__steady__", False)}
    assert names == ONE_PASS


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, f in runs_models() if getattr(f, "__steady__", False)])
def test_every_public_function_notices_that_a_model_changes_meanwhile(name, world, monkeypatch):
    function, arguments = CALLS[name](world)
    function(**arguments)  # what it needs is made, and it goes through as long as nothing changes
    lm, place, first = getattr(arguments.get("model"), "lm", world.lm), HookedLM, "run"
    if {"lm", "trunks"} & set(arguments):
        lm, place, first = world.network, copy, "deepcopy"  # copies of networks are run
    if name in ("embedding_indicators", "whitened_unembedding", "word_frames"):
        place = indicators if name == "embedding_indicators" else frames
        first = "embeddings"  # rows are read, nothing is run
    weight, real = lm.model.layers[-1].mlp.up_proj.weight, getattr(place, first)
    before = weight.detach().clone()

    def changing(*args, **kwargs):
        out = real(*args, **kwargs)
        weight.data.mul_(1.001)
        return out

    function, arguments = CALLS[name](world)
    monkeypatch.setattr(place, first, changing)
    try:
        with pytest.raises(ModelChangedError):
            function(**arguments)
    finally:
        weight.data.copy_(before)
