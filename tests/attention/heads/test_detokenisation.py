"""Words merged by the first block, from weights alone: AUROC, pairs, importance by a loop, planted pairs."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny import VOCAB, byte_tokenizer, some_prompts, tiny, tiny_lm

import tokinterp as ti
from tokinterp.attention.heads.detokenisation import _of_each, _pairs, detokenisation_scores
from tokinterp.models.attention.first_block import first_block

SMALL = {"offsets": 6, "suffixes": 5, "bigrams": 7, "texts": 2, "length": 9}


def repeats():
    return ti.Prompts.from_ids(
        [[1, *[5, 6, 7, 8, 9, 5, 6, 7, 10, 5, 11]], [1, *[6, 7, 12, 8, 9, 5, 6, 10, 13]]], tiny()
    )


def test_auroc_counts_pairs_as_often_as_they_occur_and_ties_half():
    draw = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (5, 3, 40), generator=draw).float()
    counts = torch.randint(0, 4, (5, 40), generator=draw).double()
    found = _of_each(scores, counts)
    for r, h in np.ndindex(5, 3):
        score, times = scores[r, h].numpy(), counts[r].numpy().astype(int)
        true = np.concatenate([np.zeros((times == 0).sum()), np.ones(times.sum())])
        said = np.concatenate([score[times == 0], np.repeat(score, times)])
        assert float(found[r, h]) == pytest.approx(roc_auc_score(true, said))


def test_pairs_are_neighbours_in_one_prompt_without_special_tokens():
    pairs, counts = _pairs(repeats())
    found = {tuple(p): int(n) for p, n in zip(pairs.tolist(), counts, strict=True)}
    assert found[5, 6] == 3
    assert found[6, 7] == 3
    assert (1, 5) not in found
    bare = _pairs(ti.Prompts.from_ids([[5, 6, 11], [6, 7]], tiny()))[0].tolist()
    assert bare == [[5, 6], [6, 7], [6, 11]], "none across prompts"
    assert sum(found.values()) == 10 + 8


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_results_are_those_of_a_loop(family):
    model = tiny(family)
    prompts = ti.Prompts.from_ids([repeats().ids(i) for i in range(2)], model)
    ds = detokenisation_scores(model, prompts, **SMALL)
    ti.check(ds)
    assert ds.attrs["places"] == {"llama": "rotary", "gpt2": "learned"}[family]
    ordinary = np.setdiff1d(np.arange(len(byte_tokenizer())), prompts.vocabulary.special_ids)
    block = first_block(model, torch.from_numpy(ordinary), 9)
    sizes = block.mean_sizes(VOCAB, 6)
    pairs, counts = _pairs(prompts)
    totals = {int(s): counts[pairs[:, 1] == s].sum() for s in np.unique(pairs[:, 1])}
    most = sorted(totals, key=lambda s: (-totals[s], s))[:5]
    right = []
    for s in most:
        scores = block.next_scores(torch.tensor([s]), sizes)[0].numpy()
        times = np.zeros(VOCAB, int)
        times[pairs[pairs[:, 1] == s, 0]] = counts[pairs[:, 1] == s]
        yes, no = np.repeat(np.arange(VOCAB), times), ordinary[times[ordinary] == 0]
        true = np.r_[np.ones(len(yes)), np.zeros(len(no))]
        right.append([roc_auc_score(true, np.r_[h[yes], h[no]]) for h in scores])
    np.testing.assert_allclose(ds["auroc"], np.mean(right, 0), atol=1e-6)
    assert ds.attrs["n_suffixes"] == 5
    low, high = ds["auroc_interval"].values
    assert ((low <= ds["auroc"].values) & (ds["auroc"].values <= high)).all()
    np.testing.assert_allclose(ds["excess"], ds["auroc"] - ds["auroc_null"], atol=1e-12)
    low, high = ds["excess_interval"].values
    assert ((low <= ds["excess"].values) & (ds["excess"].values <= high)).all()
    first = ds.isel(bigram=0)
    names = prompts.vocabulary.strings(pairs[np.argsort(-counts, kind="stable")[0]].tolist())
    assert [first["first_token"].item(), first["second_token"].item()] == names
    a, b = pairs[np.argsort(-counts, kind="stable")[0]]
    scores = block.next_scores(torch.tensor([b]), sizes)[0]
    np.testing.assert_allclose(first["score"], scores[:, a], rtol=1e-5)
    np.testing.assert_array_equal(first["rank"], (scores[:, ordinary] > scores[:, a : a + 1]).sum(1))
    moved = np.zeros((2, len(block.names), 4))
    for i in range(2):
        ids = torch.from_numpy(prompts.ids(i)[:9].astype(np.int64))
        terms = block.terms(ids)
        whole = torch.stack([*terms.values()]).sum(0)
        for t, name in enumerate(terms):
            for h in range(4):
                apart = [
                    float((p * (p.log() - (whole[h] - terms[name][h])[j, : j + 1].log_softmax(0))).sum())
                    for j in range(1, len(ids)) for p in [whole[h, j, : j + 1].softmax(0)]
                ]  # fmt: skip
                moved[i, t, h] = np.mean(apart)
    np.testing.assert_allclose(ds["importance"], moved.mean(0), atol=1e-6)


def test_a_head_made_to_gather_a_pair_finds_it_and_its_control_does_not():
    """Head 2 asks, at token s, for the embedding of the token that always stands before s."""
    lm = tiny_lm("gpt2", n_embd=64)
    pairs = [(10 + i, 40 + i) for i in range(12)]
    with torch.no_grad():
        e = torch.eye(64).repeat(5, 1)[:VOCAB] * 3
        lm.transformer.wte.weight.copy_(e)
        lm.transformer.wpe.weight.mul_(0.01)
        attn = lm.transformer.h[0].attn.c_attn
        want = torch.zeros(64, 16)
        for i, (first, second) in enumerate(pairs):
            want[second % 64, i] = 3.0
            attn.weight[first % 64, 64 + 32 : 64 + 48] = torch.eye(16)[i] * 3
        attn.weight[:, 32:48] = want
    model = ti.wrap(lm, byte_tokenizer(), id="planted")
    prompts = ti.Prompts.from_ids([[1, *pair] for pair in pairs], model)
    ds = detokenisation_scores(model, prompts, offsets=4, suffixes=12, bigrams=12, texts=2, length=8)
    auroc = ds["auroc"].where(ds["head"] != 2, 0.5)
    assert float(ds["auroc"].sel(head=2)) > 0.95
    assert float(ds["excess_interval"].sel(head=2, bound="lower")) > 0.3
    assert float(abs(auroc - 0.5).max()) < 0.35
    assert float(abs(ds["auroc_null"] - 0.5).max()) < 0.35


def test_what_has_no_terms_is_refused_before_anything_is_read():
    with pytest.raises(ValueError, match=r"offsets=99: tiny-llama has 64 places"):
        detokenisation_scores(tiny(), repeats(), offsets=99)
    with pytest.raises(ValueError, match=r"none of the 2 has two ordinary tokens side by side"):
        detokenisation_scores(tiny(), some_prompts([2, 2]), offsets=4)
    with pytest.raises(ValueError, match=r"all pairs have one second token"):
        detokenisation_scores(tiny(), ti.Prompts.from_ids([[1, 5, 6], [1, 5, 6]], tiny()), offsets=4)
