"""A result belongs to the model, the prompts and the settings that made it: whatever decides them changes its name."""

import copy
import json
from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from tiny import Norms, byte_tokenizer, some_prompts, tiny, tiny_lm
from torch import nn

import tokinterp as ti
from tokinterp.models.fingerprint import weights_hash
from tokinterp.run.facts import compare_facts, fingerprint
from tokinterp.settings.describe import describe

PROMPTS = [9, 12]
scale = 2.0


def run(lm=None, measurements=None, prompts=None, **options):
    model = ti.wrap(tiny_lm() if lm is None else lm, byte_tokenizer(), id="m")
    asked = measurements or {"norms": Norms()}
    return ti.measure(model, some_prompts(PROMPTS) if prompts is None else prompts, asked, progress=False, **options)


# -- the model ------------------------------------------------------------------------------------------------
def in_place(lm):
    with torch.no_grad():
        next(lm.parameters()).view(-1)[-1] += 1e-6  # one value of one parameter, the last


def swapped(lm):
    with torch.no_grad():
        w = lm.model.layers[1].mlp.up_proj.weight
        w[[0, 1]] = w[[1, 0]]


def buffer(lm):
    lm.model.rotary_emb.inv_freq.mul_(1.01)


def steered(lm):
    push = torch.ones(32)
    lm.model.layers[1].register_forward_hook(lambda m, args, out: out + push)


def steered_late(lm):
    lm.model.layers[0].register_forward_pre_hook(
        lambda m, args: (torch.cat([args[0][:, :50], 2 * args[0][:, 50:]], 1), *args[1:])
    )


def steered_less(lm):
    push = 0.5 * torch.ones(32)
    lm.model.layers[1].register_forward_hook(lambda m, args, out: out + push)


class Adapter(nn.Module):
    """Stands in for an adapter: adds what it learned, as strongly as ``scaling`` says."""

    def __init__(self, base, scaling=1.0, on=True):
        super().__init__()
        self.base, self.scaling, self.on = base, {"default": scaling}, on
        self.low = nn.Parameter(torch.full_like(base.weight, 0.01))

    def forward(self, x):
        return self.base(x) + (self.scaling["default"] * x @ self.low.T if self.on else 0)


def adapted(lm, **how):
    lm.model.layers[0].mlp.up_proj = Adapter(lm.model.layers[0].mlp.up_proj, **how)


def replaced(lm):
    old = lm.model.layers[2].mlp.forward
    lm.model.layers[2].mlp.forward = lambda x: 2 * old(x)


def scaled(lm):
    lm.model.layers[0].self_attn.scaling *= 2


CHANGES = {
    "one value": in_place, "two rows swapped": swapped, "a buffer": buffer, "a hook": steered,
    "a later hook": steered_late,
    "a weaker hook": steered_less, "an adapter": adapted, "adapter off": partial(adapted, on=False),
    "adapter stronger": partial(adapted, scaling=2.0), "a replaced method": replaced, "an attribute": scaled,
}  # fmt: skip


@pytest.mark.slow
def test_every_change_of_a_model_is_another_identity():
    found = {"none": ti.wrap(tiny_lm()).info.identity}
    for name, change in CHANGES.items():
        change(lm := tiny_lm())
        found[name] = ti.wrap(lm).info.identity
        change(lm := tiny_lm())
        assert ti.wrap(lm).info.identity == found[name], name  # and is the same each time
    assert len(set(found.values())) == len(found)


def test_what_is_read_off_the_config_in_a_pass_is_another_identity():
    lm = tiny_lm("gemma2")
    first = ti.wrap(lm).info.identity
    lm.config.final_logit_softcapping = 1.5
    assert ti.wrap(lm).info.identity != first


def test_the_identity_is_taken_when_a_run_starts():
    lm = tiny_lm()
    model = ti.wrap(lm)
    first = model.info.identity
    prompts = some_prompts(PROMPTS)
    for change in (in_place, steered, scaled):
        change(lm)
        made = ti.measure(model, prompts, {"norms": Norms()}, progress=False)
        assert made.attrs["identity"] == ti.wrap(lm).info.identity != first
        first = made.attrs["identity"]


@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {"rms_norm_eps": 0.3}), ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
     ("mixtral", {"num_experts_per_tok": 1})],
)  # fmt: skip
@pytest.mark.slow
def test_a_store_of_a_model_with_another_config_is_refused(family, changes, tmp_path):
    store = tmp_path / "a.zarr"
    one, two = tiny_lm(family), tiny_lm(family, **changes)
    two.load_state_dict(one.state_dict())
    run(one, store=store)
    with pytest.raises(ValueError, match=rf"another run; it differs in: config \({next(iter(changes))}"):
        run(two, store=store)
    run(one, store=store)


def test_what_only_the_logits_show_is_refused_and_rounding_is_not(tmp_path, monkeypatch):
    from transformers.models.llama import modeling_llama

    store = tmp_path / "a.zarr"
    facts = json.loads(run(store=store).attrs["facts"])
    near = {**facts, "logits": [v * (1 + 1e-6) for v in facts["logits"]]}  # another number of threads
    compare_facts(facts, near, store)
    assert fingerprint(facts) == fingerprint(near)
    far = {**facts, "logits": [v * 1.01 for v in facts["logits"]]}
    with pytest.raises(ValueError, match=r"differs in: logits of fixed ids"):
        compare_facts(facts, far, store)
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *args, **more: (q, k))
    with pytest.raises(ValueError, match=r"logits of fixed ids"):
        run(store=store)


def test_the_state_after_a_pass_is_that_before():
    model = ti.wrap(tiny_lm())
    first = model.info
    run(model.lm, {"lens": ti.lens.LogitLens(top=0)}, some_prompts([40, 60]))
    model.lm(torch.tensor([[1, 5, 6]]), output_hidden_states=True)
    assert model.identify() == first


LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "rope_theta": 1e4}
ROPES = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    "longrope": {**LONG, "original_max_position_embeddings": 16, "factor": 4.0},
}


@pytest.mark.parametrize("kind", ROPES)
def test_identity_does_not_depend_on_what_ran_before_and_leaves_the_model_alone(kind):
    lm = tiny_lm(max_position_embeddings=64 if kind == "longrope" else 16, rope_parameters=ROPES[kind])
    model = ti.wrap(lm)
    first, rope = model.identify(), lm.model.rotary_emb
    start = rope.inv_freq.clone()
    for length in (40, 3):
        with torch.no_grad():
            lm(torch.arange(length)[None] + 3)
        found = {k: v for k, v in vars(rope).items() if not k.startswith("_")}, dict(rope._buffers)
        bits = {k: v.clone() for k, v in rope._buffers.items()}
        assert (length == 40) == (not torch.equal(rope.inv_freq, start)), "the test needs a text that changes it"
        assert model.identify() == first
        assert describe(lm) == describe(lm)
        assert {k: v for k, v in vars(rope).items() if not k.startswith("_")} == found[0]
        assert rope._buffers.keys() == found[1].keys()
        assert all(rope._buffers[k] is v and torch.equal(v, bits[k]) for k, v in found[1].items())
    again = tiny_lm(max_position_embeddings=64 if kind == "longrope" else 16, rope_parameters=ROPES[kind])
    with torch.no_grad():
        again(torch.arange(40)[None] + 3)
    assert ti.wrap(again).identify().facts == first.facts
    assert model.passes == ti.wrap(again).passes


@pytest.mark.parametrize("how", ["whole", "inside"])
@pytest.mark.slow
def test_a_compiled_model_is_not_compiled_to_be_identified(how):
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    lm = tiny_lm()
    first = ti.wrap(lm).identify()
    if how == "whole":
        lm.compile(backend=backend)
    else:
        lm.model.layers[1].compile(backend=backend)
    model = ti.wrap(lm)
    assert model.identify().identity == first.identity
    assert not compiled
    with torch.no_grad():
        lm(torch.tensor([[1, 5, 6]]))
    assert compiled, "the test needs a model that does compile"
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_model_that_changes_while_it_is_measured_is_refused(tmp_path):
    class Changes(Norms):
        def __init__(self, change=lambda: None):
            super().__init__()
            self.change, self.batches = change, 0

        def settings(self):
            return {}

        def update(self, batch):
            super().update(batch)
            self.batches += 1
            if self.batches == 1:
                self.change()

    def doubled(p):
        with torch.no_grad():
            p.mul_(2)

    changes = {
        "weights": lambda lm: doubled(lm.model.layers[1].mlp.up_proj.weight),
        "config": lambda lm: setattr(lm.config, "rms_norm_eps", 0.5),
        "state": lambda lm: setattr(lm.model.layers[0].self_attn, "scaling", 0.1),
        "hooks": lambda lm: lm.model.layers[0].register_forward_hook(lambda _m, _a, out: out * 2),
    }
    for name, change in changes.items():
        lm, store = tiny_lm(), tmp_path / "run.zarr"
        with pytest.raises(RuntimeError, match=rf"the {name} of m changed while it was measured.*nothing .* is kept"):
            run(lm, {"n": Changes(partial(change, lm))}, store=store, batch_tokens=12, checkpoint_every=0)
        assert not list(tmp_path.iterdir()), name
    run(tiny_lm(), {"n": Changes()}, store=tmp_path / "run.zarr", batch_tokens=12)


def test_a_hook_that_puts_the_model_into_training_mode_is_refused():
    lm = tiny_lm()
    lm.model.layers[0].register_forward_hook(lambda *_: lm.train() and None)
    with pytest.raises(RuntimeError, match="was put into training mode in the middle of a computation"):
        ti.wrap(lm)


def test_hooks_that_keep_what_they_see_do_not_change_the_model():
    lm = tiny_lm()
    seen, last = [], {}

    def look(module, args, out):
        seen.append(float(out.sum()))
        last["norm"] = float(out.norm())

    lm.model.layers[0].register_forward_hook(look)
    model = ti.wrap(lm)
    first = model.info.identity
    with torch.no_grad():
        lm(torch.tensor([[1, 5, 6]]))
    assert len(seen) > 1
    assert model.identify().identity == first


def test_weights_of_any_kind_have_a_hash():
    def of(*values, dtype=torch.float32):
        return weights_hash(nn.ParameterList([nn.Parameter(torch.tensor(values, dtype=dtype), requires_grad=False)]))

    kinds = [
        of(1, 2, 3),
        of(1, 3, 2),
        of(1, 2, 4),
        of(1, 2, 3, dtype=torch.bfloat16),
        of(1, 2, 3, dtype=torch.int8),
        of(1, 2),
        of(),
    ]
    assert len(set(kinds)) == len(kinds)
    big = torch.arange(5_000_000.0)
    holder = nn.ParameterList([nn.Parameter(big)])
    first = weights_hash(holder)
    for n in (0, 1, 4_999_999, 4_181_016):
        big[n] += 1
        assert weights_hash(holder) != first
        big[n] -= 1
    for one, other in ((3, 2_000_003), (3, 7), (0, 2 * 1021)):  # far apart, in one row, in one column of the table
        changed = big.clone()
        changed[[one, other]] = big[[other, one]]
        assert weights_hash(nn.ParameterList([nn.Parameter(changed)])) != first


# -- prompts --------------------------------------------------------------------------------------------------
def test_prompts_of_equal_ids_and_another_text_or_documents_are_others():
    tok = byte_tokenizer()
    ids = [[1, 5, 6], [1, 7, 8]]
    text = "the river"
    whole = ti.Prompts.from_texts([text + text], tok, bos=False)
    windows = ti.Prompts.from_texts([text + text], tok, bos=False, max_tokens=len(whole.ids(0)) // 2, on_long="window")
    alone = ti.Prompts.from_ids([windows.ids(i) for i in range(len(windows))], tok)
    assert len(windows) == 2
    found = {
        "windows": windows.hash, "alone": alone.hash, "ids": ti.Prompts.from_ids(ids, tok).hash,
        "no tokenizer": ti.Prompts.from_ids(ids).hash, "bos": ti.Prompts.from_ids(ids, tok, bos=True)[[1, 0]].hash,
    }  # fmt: skip
    assert len(set(found.values())) == len(found)
    assert np.array_equal(windows.token_ids, alone.token_ids)
    assert "windows of 1 texts" in windows.history
    assert not alone.history


def test_prompts_of_another_tokenizer_are_refused():
    other = copy.deepcopy(byte_tokenizer())
    other.add_tokens(["zebra"])
    with pytest.raises(ValueError, match="made with another tokenizer"):
        ti.measure(tiny(), ti.Prompts.from_texts(["a river"], other), {"n": Norms()}, progress=False)
    ti.measure(tiny(), ti.Prompts.from_ids([[1, 5, 6]]), {"n": Norms()}, progress=False)


def test_prompts_do_not_change_after_they_are_made():
    texts = ["a river", "two rivers"]
    prompts = ti.Prompts.from_texts(texts, byte_tokenizer())
    before = prompts.hash
    for name in ("token_ids", "starts", "documents", "window_starts", "chars", "half", "truncated", "_offsets"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(prompts, name)[...] = 0
    texts[0] = "another"
    assert prompts.text(0) == "a river"
    assert prompts[:].hash == before == ti.Prompts.from_texts(["a river", "two rivers"], byte_tokenizer()).hash
    ids = [np.array([1, 5, 6])]
    bare = ti.Prompts.from_ids(ids)
    ids[0][:] = 0
    assert bare.ids(0).tolist() == [1, 5, 6]


def test_a_tokenizer_that_was_changed_after_the_prompts_were_made_is_refused():
    model = ti.wrap(tiny_lm(), copy.deepcopy(byte_tokenizer()), id="m")
    prompts = ti.Prompts.from_texts(["a river"], model)
    model.tokenizer.add_tokens(["zebra"])
    with pytest.raises(ValueError, match="was changed after they were made: make them anew"):
        ti.measure(model, prompts, {"n": Norms()}, progress=False)
    ti.measure(model, ti.Prompts.from_texts(["a river"], model), {"n": Norms()}, progress=False)


# -- settings -------------------------------------------------------------------------------------------------


def written(text, **names):
    """What a file with this text defines last."""
    space = {"Measurement": ti.Measurement, "Norms": Norms, "np": np, "torch": torch, "__name__": "user", **names}
    exec(text, space)
    return [v for k, v in space.items() if k not in names][-1]


def scaled_spread(x):
    return float(scale * x.std())


def test_a_global_of_an_estimator_is_part_of_a_run():
    global scale
    old = scale
    marks = []
    try:
        for value in (2.0, 3.0, 2.0):
            scale = value
            asked = {"cloud": ti.geometry.PerCloud(scaled_spread)}
            marks.append(run(measurements=asked).attrs["fingerprint"])
    finally:
        scale = old
    assert marks[0] == marks[2] != marks[1]


OWN = """
class Base(Norms):
    power = {power}
    def helper(self, x):
        return x ** self.power {more}
class Own(Base):
    def update(self, batch):
        super().update(batch)
"""


@pytest.mark.slow
def test_an_edited_measurement_is_another_run(tmp_path):
    store = tmp_path / "own.zarr"
    first = written(OWN.format(power=1, more=""))
    run(measurements={"own": first()}, store=store)
    run(measurements={"own": written(OWN.format(power=1, more=""))()}, store=store)
    first.seen = 3  # what is set later is no code
    run(measurements={"own": first()}, store=store)
    for power, more in ((2, ""), (1, "+ 1")):
        with pytest.raises(ValueError, match=r"another run; it differs in: measurements \(own\)"):
            run(measurements={"own": written(OWN.format(power=power, more=more))()}, store=store)


SETTINGS = [
    (ti.lens.LogitLens, {"top": 0}, [{"top": 1}, {"top": 0, "layers": [1]}, {"top": 0, "tokens": 1}]),
    (
        ti.geometry.IntrinsicDimension,
        {"scales": (2,), "k": 3, "small": "nan"},
        [{"scales": (2,), "k": 4, "small": "nan"}],
    ),
    (ti.geometry.Spectrum, {}, [{"layers": [1]}]),
    (ti.geometry.TokenNorms, {}, [{"entries": 2}]),
    (ti.geometry.Curvature, {}, [{"exclude": ()}]),
    (ti.geometry.CosineSimilarity, {}, [{"layers": [2]}]),
]


@pytest.mark.parametrize(("kind", "base", "others"), SETTINGS, ids=lambda v: getattr(v, "__name__", ""))
@pytest.mark.slow
def test_every_setting_is_part_of_the_fingerprint(kind, base, others):
    def mark(**settings):
        return run(measurements={"m": kind(**settings)}).attrs["fingerprint"]

    found = [mark(**s) for s in (base, *others)]
    assert len(set(found)) == len(found)
    assert mark(**base) == found[0]


@pytest.mark.slow
def test_edits_order_of_settings_and_dtype():
    site = ti.Site("attn_out", 0)
    found = [
        run().attrs["fingerprint"],
        run(edits=[ti.edits.zero(site)]).attrs["fingerprint"],
        run(edits=[ti.edits.zero(site, positions=[1])]).attrs["fingerprint"],
        run(edits=[ti.edits.zero(site, positions=lambda ids, mask: mask & (ids == 5))]).attrs["fingerprint"],
        run(edits=[ti.edits.add(site, torch.ones(32))]).attrs["fingerprint"],
        run(tiny_lm().double()).attrs["fingerprint"],
        run(prompts=some_prompts(PROMPTS, seed=1)).attrs["fingerprint"],
    ]
    assert len(set(found)) == len(found)


def test_long_settings_are_hashed_in_the_attributes():
    labels = np.arange(sum(PROMPTS)) % 7
    asked = ti.geometry.NeighbourOverlap(k=(1,), layers=[1], labels=("pos",), classes={"pos": labels}, small="nan")
    made = run(measurements={"o": asked})
    assert len(made["o"].attrs["parameters"]) < 1000
    other = ti.geometry.NeighbourOverlap(
        k=(1,), layers=[1], labels=("pos",), classes={"pos": labels[::-1].copy()}, small="nan"
    )
    assert run(measurements={"o": other}).attrs["fingerprint"] != made.attrs["fingerprint"]


# -- what is made of results ----------------------------------------------------------------------------------
def test_what_is_made_of_a_result_has_a_name_of_its_own():
    lens = run(measurements={"l": ti.lens.LogitLens(top=0, tokens=None)})["l"].to_dataset()
    labels = ["a", "b"] * (sum(PROMPTS) // 2) + ["a"]
    prompts = some_prompts(PROMPTS)
    token = lens["token_entropy"].isel(layer=0, variant=0)
    made = {
        "summary": ti.summary(lens), "level": ti.summary(lens, level=0.9), "seed": ti.summary(lens, seed=1),
        "part": ti.summary(lens.isel(layer=[0])), "other values": ti.summary(lens + 1),
        "profile": ti.results.class_profile(lens.isel(layer=0, variant=0), "token_entropy", labels, prompts, least=1),
        "labels": ti.results.class_profile(lens.isel(layer=0, variant=0), "token_entropy", labels[::-1], prompts,
        least=2),
        "correlation": ti.results.token_correlation(token, token),
        "side by side": ti.concat_models({"one": lens, "two": lens}),
        "names": ti.concat_models({"one": lens, "three": lens}),
    }  # fmt: skip
    marks = [ds.attrs["fingerprint"] for ds in made.values()]
    assert len({*marks, lens.attrs["fingerprint"]}) == len(marks) + 1
    assert made["summary"].attrs["measurement"] == "summary"
    assert made["profile"].attrs["measurement"] == "class_profile"
    assert ti.summary(lens).attrs["fingerprint"] == made["summary"].attrs["fingerprint"]
    assert json.loads(made["level"].attrs["parameters"])["level"] == 0.9


@pytest.mark.slow
def test_functions_that_run_a_model_are_named_by_all_that_decides_them():
    items = [ti.behaviour.Item("The Nile is a", ("river", "mountain"), 0)]
    model = ti.load_model()
    found = [
        ti.behaviour.multiple_choice(model, items, score=score, shots=shots, edit=edit)
        for score, shots, edit in (
            ("option", (), None), ("option_mean", (), None), ("letter", (), None), ("option", items, None),
            ("option", (), str.upper),
        )
    ]  # fmt: skip
    marks = [ds.attrs["fingerprint"] for ds in found]
    assert len(set(marks)) == len(marks)
    assert ti.behaviour.multiple_choice(model, items, score="option").attrs["fingerprint"] == marks[0]
    gone = [ti.text.removal.remove(t, "articles") for t in ("The river is the Nile.", "The sea is the end of the Po.")]
    one, two = (ti.behaviour.surviving_loss(model, [r]).attrs for r in gone)
    assert one["fingerprint"] != two["fingerprint"]
    assert one["prompts"] != two["prompts"]


# -- said to the reader ---------------------------------------------------------------------------------------
def test_edits_and_history_are_told_everywhere(tmp_path):
    prompts = ti.text.shuffle.shuffle_blocks(some_prompts(PROMPTS), 5)
    made = run(prompts=prompts, edits=[ti.edits.zero(ti.Site("attn_out", 0), positions=slice(1, None))])
    for node in made.subtree:
        assert node.attrs["edits"] == "zero(attn_out 0, positions 1::)".replace("::", ":") or ":" in node.attrs["edits"]
        assert node.attrs["history"] == prompts.note
    line = "measured under edits: zero(attn_out 0"
    assert line in ti.results.tables.summary_text(made)
    assert "prompts: shuffle_blocks(level=5, seed=0)" in ti.results.tables.summary_text(made)
    page = ti.report(made, tmp_path / "r.html").read_text()
    assert line in page
    derived = ti.summary(xr.Dataset({"x": ("prompt", [1.0, 2.0])}, attrs=made["norms"].attrs))
    assert derived.attrs["edits"] == made.attrs["edits"]
