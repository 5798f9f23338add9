"""Greedy decoding: prompts that end at different places, each as if alone, under edits of their own tokens."""

import pytest
import torch
from tiny import VOCAB, byte_tokenizer, tiny, tiny_lm

import tokinterp as ti
from tokinterp.run.decoding import decode

S, E = ti.Site, ti.edits
IDS = [[1, 40, 50, 60, 70], [1, 80], [1, 90, 100, 110]]


def batch(prompts=IDS):
    ids = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.int64)
    for row, p in zip(ids, prompts, strict=True):
        row[: len(p)] = torch.tensor(p)
    return ids, ids > 0


@torch.no_grad()
def by_hand(model, ids, steps, edits=(), places=None):
    """One prompt alone, token by token."""
    ids, last, said = list(ids), S("resid", model.info.n_layers), []
    for _ in range(steps):
        where = None if places is None else torch.tensor([places[: len(ids)]])
        logits = model.unembed(model.run(torch.tensor([ids]), [last], edits=edits, position_ids=where)[last][0, -1])
        said.append(logits.log_softmax(-1))
        ids.append(int(logits.argmax()))
    return ids[-steps:], said


def equal(found, row, expected):
    ids, said = expected
    assert found.ids[row].tolist() == ids
    torch.testing.assert_close(found.logprob[row], torch.stack([s.max() for s in said]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.first[row], said[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_prompt_is_continued_as_if_it_were_alone(family):
    model = tiny(family)
    found = decode(model, *batch(), 4)
    for row, ids in enumerate(IDS):
        equal(found, row, by_hand(model, ids, 4))
    assert len({tuple(x) for x in found.ids.tolist()}) > 1
    assert int(found.ids.max()) < VOCAB


def test_a_token_is_watched_whatever_is_decoded():
    model, tokens = tiny(), torch.tensor([70, 40, 300])
    found = decode(model, *batch(), 3, watch=tokens)
    for row, ids in enumerate(IDS):
        said = torch.stack(by_hand(model, ids, 3)[1])
        torch.testing.assert_close(found.watched[row], said[:, tokens[row]], rtol=1e-4, atol=1e-4)
    assert decode(model, *batch(), 3).watched.shape == (3, 0)


VALUE = torch.linspace(-1, 1, 32)
EDITS = {
    "numbers": (E.replace(S("resid", 1), VALUE, [1]), lambda n: E.replace(S("resid", 1), VALUE, [1])),
    "last": (E.add(S("resid", 2), 3 * VALUE, slice(-1, None)), lambda n: E.add(S("resid", 2), 3 * VALUE, [n - 1])),
    "everywhere": (E.zero(S("mlp_out", 1)), lambda n: E.zero(S("mlp_out", 1))),
    "hidden": (E.knock_out([1]), lambda n: E.knock_out([1])),
    "hidden from the last": (E.knock_out([0], slice(-1, None)), lambda n: E.knock_out([0], [n - 1])),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_stay_with_the_tokens_of_the_prompt(name):
    edit, alone = EDITS[name]
    prompts = [ids for ids in IDS if len(ids) > 2]
    found, plain = decode(tiny(), *batch(prompts), 3, [edit]), decode(tiny(), *batch(prompts), 3)
    for row, ids in enumerate(prompts):
        equal(found, row, by_hand(tiny(), ids, 3, [alone(len(ids))]))
    assert not torch.allclose(found.logprob, plain.logprob, atol=1e-3)


def test_values_by_position_are_put_where_they_belong():
    ids, mask = batch()
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(3, 5, 32, generator=draw)
    found = decode(tiny(), ids, mask, 3, [E.replace(S("resid", 1), values)])
    for row, own in enumerate(IDS):
        n = len(own)
        equal(found, row, by_hand(tiny(), own, 3, [Until(S("resid", 1), values[row, :n])]))


def Until(site, values):
    """Values of the first positions, whatever follows them."""

    def put(x):
        x = x.clone()
        x[:, : len(values)] = values
        return x

    return E.apply(site, put)


def test_decoded_tokens_count_on_from_the_last_place():
    ids, mask = batch()
    places = torch.tensor([[0, 1, 2, 7, 8], [0, 9, 0, 0, 0], [0, 3, 4, 5, 0]])
    found = decode(tiny(), ids, mask, 3, places=places)
    for row, own in enumerate(IDS):
        at = places[row, : len(own)].tolist()
        equal(found, row, by_hand(tiny(), own, 3, places=[*at, *range(at[-1] + 1, at[-1] + 4)]))
    assert not torch.allclose(found.logprob, decode(tiny(), ids, mask, 3).logprob, atol=1e-3)


def test_hidden_everywhere_is_hidden_from_decoded_tokens_too():
    """Keys that are not chosen are all keys, decoded ones too: every token sees itself alone."""
    edit = E.knock_out(None, heads=[0, 1])
    found = decode(tiny(), *batch(), 4, [edit])
    for row, ids in enumerate(IDS):
        equal(found, row, by_hand(tiny(), ids, 4, [edit]))


def test_what_follows_logits_that_are_not_numbers_is_missing():
    lm = tiny_lm()
    model = ti.wrap(lm, byte_tokenizer(), id="broken")
    first = int(decode(model, *batch(), 1).ids[0, 0])
    lm.model.embed_tokens.weight.data[first] = torch.nan  # the first token decoded has no embedding
    found = decode(model, *batch(IDS[:1]), 3)
    assert found.ids.tolist() == [[first, -1, -1]]
    assert found.logprob.isnan().tolist() == [[False, True, True]]
