"""Sites, batches without padding, labels, and the stream of batches."""

import numpy as np
import pytest
import torch
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.run.batch import Batch

S = ti.Site
LENGTHS = [5, 12, 1, 7, 12, 3]


@pytest.fixture(scope="module")
def prompts():
    return some_prompts(LENGTHS)


@pytest.fixture(scope="module")
def batch(prompts):
    return ti.capture(tiny(), prompts, [3, 0, 2], [*ti.resid([0, 2]), S("pattern", 1)])


def test_rows_are_the_real_tokens_prompt_by_prompt(batch, prompts):
    assert len(batch) == 3
    assert len(batch.tokens) == 13 == len(batch.rows(2))
    assert batch.tokens.prompt.tolist() == [3] * 7 + [0] * 5 + [2]
    assert batch.tokens.position.tolist() == [*range(7), *range(5), 0]
    assert batch.tokens.ids.tolist() == [*prompts.ids(3), *prompts.ids(0), *prompts.ids(2)]
    assert batch.tokens.special.tolist() == [True, *[False] * 6, True, *[False] * 4, True]
    assert batch.prompt_numbers.tolist() == [3, 0, 2]
    assert torch.equal(batch.rows(2)[7:12], batch.resid(2)[1, :5])
    assert batch.activations[ti.Site("pattern", 1)].shape == (3, 4, 7, 7)


@pytest.mark.parametrize("offset", [-9, -3, -1, 0, 1, 2, 9])
def test_labels_are_the_ids_at_an_offset(batch, prompts, offset):
    labels = batch.labels(offset)
    for place, number in enumerate([3, 0, 2]):
        ids = prompts.ids(number)
        for position in range(7):
            other = position + offset
            inside = position < len(ids) and 0 <= other < len(ids)
            assert labels[place, position] == (ids[other] if inside else -1)


def test_select_keeps_prompts_and_their_activations(batch):
    part = batch.select([2, 0])
    assert part.numbers == [2, 3]
    assert torch.equal(part.rows(2), torch.cat([batch.rows(2)[12:], batch.rows(2)[:7]]))
    assert part.activations[ti.Site("pattern", 1)].shape[0] == 2
    empty = batch.select([])
    assert isinstance(empty, Batch)
    assert len(empty) == 0


def test_unembed_of_a_batch_is_the_models(batch, prompts):
    last = ti.capture(tiny(), prompts, [1], ti.resid([3]))
    with torch.no_grad():
        logits = tiny().lm(last.ids).logits
    torch.testing.assert_close(last.model.unembed(last.resid(3)), logits, rtol=1e-5, atol=1e-5)


def test_choose_layers_refuses_what_is_not_there():
    from tokinterp.run.measurement import choose_layers

    info = tiny().info
    assert choose_layers(None, info) == [0, 1, 2, 3]
    assert choose_layers([2, 0, 2], info) == [0, 2]
    for bad in ([4], [-1], []):
        with pytest.raises(ValueError, match=r"layers=.*( to 3|from the end|means all)"):
            choose_layers(bad, info)


def test_every_prompt_is_captured_as_if_alone(batch, prompts):
    for place, number in enumerate([3, 0, 2]):
        ids = torch.from_numpy(prompts.ids(number).astype(np.int64))[None]
        alone = tiny().run(ids, ti.resid([2]))[S("resid", 2)][0]
        torch.testing.assert_close(batch.resid(2)[place, : len(alone)], alone, rtol=1e-5, atol=1e-5)


def test_what_belongs_to_rows_is_found_without_a_copy_of_the_activations(monkeypatch):
    """Values of single tokens of the first prompts; and where no prompt is left out, a batch stays as it is."""
    model, prompts = tiny(), some_prompts([9, 7, 8])

    def copied(self, keep):
        raise AssertionError("every activation of the batch was copied")

    monkeypatch.setattr(ti.Batch, "select", copied)
    asked = {
        "norms": ti.geometry.TokenNorms(tokens=2), "curvature": ti.geometry.Curvature(tokens=2),
        "spectrum": ti.geometry.Spectrum(),
        "lens": ti.lens.LogitLens(tokens=2), "overlap": ti.geometry.NeighbourOverlap([1], tokens=2, labels=()),
        "entropy": ti.geometry.MatrixEntropy(),
    }  # fmt: skip
    found = ti.measure(model, prompts, asked, progress=False)
    assert sorted(set(found["norms"]["token_prompt"].values.tolist())) == [0, 1]
    batch = ti.capture(model, prompts, [0, 1, 2], ti.resid([1]))
    stream = batch.resid(1)
    assert stream.data_ptr() == batch.activations[ti.Site("resid", 1)].data_ptr()
    assert batch.tokens.prompt.tolist() == [0] * 9 + [1] * 7 + [2] * 8


def test_what_is_kept_is_without_special_tokens_and_what_is_massive_at_the_layers(batch):
    everything = batch.kept(())
    assert everything.sum() == 13
    assert batch.kept(("special",)).sum(1).tolist() == [6, 4, 0]
    again = batch.select([0, 1, 2])
    again.activations[S("resid", 0)][0, 3] *= 1e3
    again.activations[S("resid", 2)][1, 2] *= 1e3
    left = [again.kept(("massive",), *layers).logical_not() & everything for layers in ([0], [2], [0, 2])]
    assert [n.nonzero().tolist() for n in left] == [[[0, 3]], [[1, 2]], [[0, 3], [1, 2]]]
    assert torch.equal(again.kept(("massive", "special"), 0), again.kept(("massive",), 0) & again.kept(("special",)))


def test_what_several_need_is_made_once(batch):
    calls = []
    assert batch.once("a", lambda: calls.append(1) or 5) == batch.once("a", lambda: calls.append(2)) == 5
    assert calls == [1]


def test_texts_and_names_of_sites_are_taken_and_a_batch_says_what_it_holds():
    model = tiny()
    texts = ["The river to the sea", "and the singing"]
    batch = ti.capture(model, texts, sites=["attn_out.1", "resid"])
    asked = [ti.Site("attn_out", 1), *ti.resid(range(model.info.n_layers + 1))]
    assert {*batch.activations} == {*asked}
    known = ti.capture(model, ti.Prompts.from_texts(texts, model), [0, 1], asked)
    for site in asked:
        assert torch.equal(batch.activations[site], known.activations[site])
    assert repr(batch).startswith("Batch(2 prompts of up to ")
    assert "attn_out 1 (2, " in repr(batch)
    assert [*ti.capture(model, texts).activations] == asked[1:]
    with pytest.raises(ValueError, match="did you mean 'resid'"):
        ti.capture(model, texts, sites="resd.1")
