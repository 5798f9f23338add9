"""Patchscopes: nothing changes in place, a token is its embedding, decoding is greedy; and bad input."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from text_helpers import space_tokenizer
from tiny import VOCAB, some_prompts, tiny

import tokinterp as ti
from tokinterp.lexicon.patchscopes import TEMPLATES, Target, patchscope

MODEL = tiny()
PROMPTS = some_prompts([9, 7, 12], seed=3)


def greedy(model, ids, steps):
    """Plain greedy decoding, and the log-probabilities of the first token."""
    ids, first = list(ids), None
    for _ in range(steps):
        with torch.no_grad():
            logits = model.lm(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
        first = logits.log_softmax(-1) if first is None else first
        ids.append(int(logits.argmax()))
    return ids[-steps:], first


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_a_state_put_back_into_its_own_place_changes_nothing(family):
    model = tiny(family)
    ids = PROMPTS.ids(0).tolist()
    expected, logprob = greedy(model, ids, 3)
    found = patchscope(model, PROMPTS[:1], Target(tuple(ids), (5,), "same"), position=5, n_tokens=3, true=[7])
    assert (found["generated"].values == expected).all()
    np.testing.assert_allclose(found["surprisal"], -float(logprob[7]), rtol=1e-5)
    ti.check(found)
    # A state of elsewhere does change the answer: the test can fail.
    other = patchscope(model, PROMPTS[1:2], Target(tuple(ids), (8,), "same"), true=[7])
    assert not np.allclose(other["surprisal"], -float(logprob[7]), rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_layer_0_state_of_a_token_is_that_token(family):
    model = tiny(family)
    target = Target((1, 40, 50, 60, 70, 80), (3,))
    source = ti.Prompts.from_ids([[1, 9, 8, x] for x in (100, 200, 300)], model)  # same place, for GPT-2's positions
    found = patchscope(model, source, target, 0, n_tokens=4, true=[5, 6, 7])
    for n, x in enumerate((100, 200, 300)):
        ids, logprob = greedy(model, [1, 40, 50, x, 70, 80], 4)
        assert found["generated"].values[n, 0].tolist() == ids
        assert float(found["surprisal"][n, 0]) == pytest.approx(-float(logprob[5 + n]), rel=1e-5)
    assert len({tuple(g) for g in found["generated"].values[:, 0].tolist()}) > 1


@pytest.mark.slow
def test_layers_sources_and_batches_do_not_mix():
    whole = patchscope(MODEL, PROMPTS, "repeat", n_tokens=3, true=[4, 5, 6])
    assert whole.sizes == {"prompt": 3, "layer": 4, "step": 3}
    for tokens in (1, 40, 100):
        again = patchscope(MODEL, PROMPTS, "repeat", n_tokens=3, true=[4, 5, 6], batch_tokens=tokens)
        assert (again["generated"] == whole["generated"]).all()
        np.testing.assert_allclose(again["surprisal"], whole["surprisal"], rtol=1e-4)
    for n in range(3):
        one = patchscope(MODEL, PROMPTS[n : n + 1], "repeat", [2], n_tokens=3, true=[4 + n])
        assert (one["generated"].values[0, 0] == whole["generated"].sel(layer=2).values[n]).all()
    assert whole["source_position"].values.tolist() == [8, 6, 11]
    first = patchscope(MODEL, PROMPTS, "repeat", n_tokens=1)
    assert (first["generated"].values[:, :, 0] == whole["generated"].values[:, :, 0]).all()


@torch.no_grad()
@pytest.mark.parametrize("target_layer", [0, 2, 3, "same"])
def test_any_target_layer_equals_one_edit_by_hand(target_layer):
    target = Target((1, 40, 50, 60), (1, 3), target_layer)
    found = patchscope(MODEL, PROMPTS, target, [1, 3], true=[4, 5, 6])
    for n in range(3):
        for layer in (1, 3):
            at = layer if target_layer == "same" else target_layer
            ids = torch.tensor([PROMPTS.ids(n).tolist()])
            state = MODEL.run(ids, [ti.Site("resid", layer)])[ti.Site("resid", layer)][0, -1]
            edit = ti.edits.replace(ti.Site("resid", at), state, [1, 3])
            last = ti.Site("resid", 3)
            logits = MODEL.unembed(MODEL.run(torch.tensor([target.ids]), [last], edits=[edit])[last][0, -1])
            one = found.sel(layer=layer).isel(prompt=n)
            assert int(one["generated"][0]) == int(logits.argmax())
            assert float(one["surprisal"]) == pytest.approx(-float(logits.log_softmax(-1)[4 + n]), rel=1e-4)


def test_success_is_the_text_expected_and_its_first_layer():
    found = patchscope(MODEL, PROMPTS, "repeat", n_tokens=3)
    ids = found["generated"].values
    expected = [ids[0, 2, :2], ids[1, 0], [3, 3, 3]]
    again = patchscope(MODEL, PROMPTS, "repeat", expected=expected, true=[ids[0, 1, 0], 3, ids[2, 3, 0]])
    assert again.sizes["step"] == 3
    assert again["success"].values[0, 2] == 1
    assert again["success"].values[1, 0] == 1
    assert again["success"].values[2].tolist() == [0, 0, 0, 0]
    first = again["first_layer"].values
    assert first[0] == np.flatnonzero(again["success"].values[0])[0]
    assert first[1] == 0
    assert np.isnan(first[2])
    assert again["precision"].values[0, 1] == 1
    assert again["precision"].values[2, 3] == 1
    right = again["precision"].values == 1
    assert (again["surprisal"].values[right] < np.log(VOCAB)).all()


def test_the_space_before_a_word_does_not_count():
    vocabulary = PROMPTS.vocabulary
    text = {s: n for n, s in enumerate(vocabulary.strings(range(VOCAB)))}
    spaced, plain = text[" in"], text["i"]
    from tokinterp.lexicon.patchscopes import _success

    generated = np.array([[[plain, text["n"]], [spaced, 5], [text["a"], 6]]])
    assert _success(generated, [[spaced]], vocabulary).tolist() == [[False, True, False]]
    assert _success(generated, [[plain, text["n"]]], vocabulary).tolist() == [[True, False, False]]
    assert _success(generated, [[text[" "], plain]], vocabulary).tolist() == [[False, False, False]]


def test_map_is_applied_between_source_and_target():
    def repeat(map):
        return Target.make("repeat", MODEL, map=map)

    plain = patchscope(MODEL, PROMPTS, "repeat", true=[4, 5, 6])
    same = patchscope(MODEL, PROMPTS, repeat(lambda x, layer: x.clone()), true=[4, 5, 6])
    np.testing.assert_array_equal(plain["surprisal"], same["surprisal"])
    seen = []

    def nothing(x, layer):
        seen.append((layer, tuple(x.shape)))
        return torch.zeros_like(x)

    empty = patchscope(MODEL, PROMPTS, repeat(nothing), true=[4, 4, 4])
    assert sorted(set(seen)) == [(n, (3, 32)) for n in range(4)]
    np.testing.assert_allclose(empty["surprisal"], float(empty["surprisal"][0, 0]), rtol=1e-5)
    assert plain.attrs["fingerprint"] != empty.attrs["fingerprint"]


@torch.no_grad()
def test_another_model_reads_the_state():
    reader = tiny("gpt2")
    found = patchscope(MODEL, PROMPTS, Target((1, 40, 50), (1,), model=reader), [2], true=[4, 5, 6])
    state = MODEL.run(torch.tensor([PROMPTS.ids(1).tolist()]), ti.resid([2]))[ti.Site("resid", 2)][0, -1]
    last = ti.Site("resid", 3)
    acts = reader.run(torch.tensor([[1, 40, 50]]), [last], edits=[ti.edits.replace(ti.Site("resid", 0), state, [1])])
    logprob = reader.unembed(acts[last][0, -1]).log_softmax(-1)
    assert float(found["surprisal"][1, 0]) == pytest.approx(-float(logprob[5]), rel=1e-4)


def test_named_targets_mark_one_place(bundled):
    for model in (MODEL, bundled):
        strings = PROMPTS.vocabulary.strings if model is MODEL else ti.Prompts.from_ids([[5]], model).vocabulary.strings
        for name, template in TEMPLATES.items():
            target = Target.make(name, model)
            assert len(target.positions) == 1
            assert target.ids[0] == model.tokenizer.bos_token_id
            (at,) = target.positions
            before, after = template.split("{x}")
            assert "".join(strings(target.ids[1:at])) == before.removesuffix(" ")
            assert "".join(strings(target.ids[at + 1 :])) == after
        assert Target.make("identity", model).positions[0] == len(Target.make("identity", model).ids) - 1
    twice = Target.make("{x} and {x}", MODEL)
    assert len(twice.positions) == 2


def test_a_tokenizer_that_puts_a_space_first_gets_it_once():
    model: Any = SimpleNamespace(tokenizer=space_tokenizer(), info=SimpleNamespace(d_vocab=None))
    vocabulary = ti.text.Vocabulary(model.tokenizer)
    assert vocabulary.prefix_space
    target = Target.make("repeat", model)
    (at,) = target.positions
    begin = int(vocabulary.adds_bos)
    assert "".join(vocabulary.strings(target.ids[begin:at])) == " Next is the same word twice: 1)"
    assert "".join(vocabulary.strings(target.ids[at + 1 :])) == " 2)"


def test_bad_input_is_said_before_the_model_runs(monkeypatch):
    monkeypatch.setattr(type(MODEL), "run", lambda *a, **k: pytest.fail("the model ran"))
    fine = Target((1, 40), (1,))
    bad = [
        ({"layer": 9}, "layers=\\[9\\]: tiny-llama has layers 0"),
        ({"target": Target((1, 40), (1,), 9)}, "layers=\\[9\\]"),
        ({"position": 7}, "position=7 of prompt 1: it has positions 0 to 6"),
        ({"position": [0, 0, -1]}, "position=-1 of prompt 2"),
        ({"n_tokens": 0}, "n_tokens=0: give a whole number"),
        ({"n_tokens": 70}, "a context of 64"),
        ({"expected": [[1]]}, "expected has 1 entries for 3 source prompts"),
        ({"expected": [[1], [], [2]]}, "expected has an empty entry"),
        ({"true": [1, 2]}, "true has 2 entries for 3 source prompts"),
        ({"target": Target((1, 2), (2,))}, "target: positions \\[2\\]: the target prompt has 2 tokens"),
        ({"target": "no place"}, "template='no place' of the target: write {x}"),
    ]
    with pytest.raises(ValueError, match="layer='last': give a whole number"):
        Target((1, 40), (1,), "last")
    for change, message in bad:
        with pytest.raises(ValueError, match=message):
            patchscope(MODEL, PROMPTS, **{"target": fine, **change})


def test_states_that_are_not_numbers_say_nothing_and_the_others_do():
    """A map may overflow at one layer: what follows there is missing, and the rest stays as it is."""

    def broken(x, layer):
        return x * torch.nan if layer == 2 else x

    plain, found = (
        patchscope(MODEL, PROMPTS, Target((1, 40, 50), (1,), map=m), [0, 2], n_tokens=2, expected=[[5], [6], [7]],
                   true=[5, 6, 7]) for m in (lambda x, _: x, broken)
    )  # fmt: skip
    assert (found["generated"].sel(layer=2) == -1).all()
    assert (found["text"].sel(layer=2) == "").all()
    for name in ("success", "precision", "surprisal"):
        assert found[name].sel(layer=2).isnull().all(), name
    for name in ("generated", "text", "success", "precision", "surprisal"):
        np.testing.assert_array_equal(found[name].sel(layer=0), plain[name].sel(layer=0))
