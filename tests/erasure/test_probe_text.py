"""Labels of probes and what counting answers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokinterp as ti
from tokinterp.erasure.probe_text import TextStatistics, label_ids

torch.set_num_threads(1)


# -- text -----------------------------------------------------------------------------------------------------
def test_labels_skip_special_tokens_and_the_edges(bundled):
    prompts = ti.Prompts.from_texts(["The Nile flows."], bundled)
    ids = prompts.ids(0).tolist()
    assert prompts.special(0).tolist() == [True] + [False] * (len(ids) - 1)
    assert label_ids(prompts, 0).tolist() == [-1, *ids[1:]]
    assert label_ids(prompts, -1).tolist() == [-1, -1, *ids[1:-1]]
    assert label_ids(prompts, 1).tolist() == [-1, *ids[2:], -1]
    assert label_ids(prompts, -1, bos=True).tolist() == [-1, *ids[:-1]]
    assert label_ids(prompts, 0, bos=True).tolist() == [-1, *ids[1:]]
    assert label_ids(prompts, 1, bos=True).tolist() == [*ids[1:], -1]
    assert label_ids(prompts, -len(ids)).tolist() == [-1] * len(ids)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=5), st.sampled_from([-2, -1, 1])
)
def test_baselines_are_those_of_counting(lists, offset):
    prompts = ti.Prompts.from_ids(lists)
    pairs = [(x[t], x[t + offset]) for x in lists for t in range(len(x)) if 0 <= t + offset < len(x)]
    if not pairs:
        with pytest.raises(ValueError, match="no token of these prompts has a label"):
            TextStatistics.of(prompts, [offset], 7, False, False)
        return
    found = TextStatistics.of(prompts, [offset], 7, False, False)
    labels = [b for _, b in pairs]
    unigram = max(range(7), key=lambda x: (labels.count(x), -x))
    assert int(found.unigram[0]) == unigram
    for a in range(7):
        after = [b for x, b in pairs if x == a]
        expected = max(range(7), key=lambda x: (after.count(x), -x)) if after else unigram
        assert int(found.bigram[0, a]) == expected
    for a in range(7):
        seen = found.seen_pair(offset, torch.full((7,), a), torch.arange(7))
        assert seen.tolist() == [(a, b) in pairs for b in range(7)]
    assert found.class_of()[0].ge(0).tolist() == [b in labels for b in range(7)]
