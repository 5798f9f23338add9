"""Sequences of ids: batches, padding, the table of tokens."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from text_helpers import TEXTS, byte_tokenizer

from tokinterp.text import Prompts


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 25), st.data())
def test_batches(lengths, budget, data):
    prompts = Prompts.from_ids([np.full(n, k % 7) for k, n in enumerate(lengths)])
    batches = list(prompts.batches(budget))
    order = [n for b in batches for n in b]
    assert order == sorted(range(len(lengths)), key=lambda n: (-lengths[n], n))
    for batch in batches:
        longest = max(lengths[n] for n in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        ids, mask, special = prompts.padded(batch)
        assert ids.shape == mask.shape == special.shape == (len(batch), longest)
        assert ids.dtype == np.int64
        for row, n in enumerate(batch):
            assert mask[row].tolist() == [True] * lengths[n] + [False] * (longest - lengths[n])
            assert ids[row, : lengths[n]].tolist() == prompts.ids(n).tolist()
    for batch, following in pairwise(batches):
        assert (len(batch) + 1) * lengths[batch[0]] > budget or following == []
    done = data.draw(st.integers(0, len(batches)))
    start = sum(len(b) for b in batches[:done])
    assert list(prompts.batches(budget, start=start)) == batches[done:]


def test_padding_is_not_special():
    tok = byte_tokenizer()
    prompts = Prompts.from_texts(["x", TEXTS[0]], tok)
    ids, mask, special = prompts.padded([0, 1])
    assert special.sum() == 2
    assert special[:, 0].all()
    assert (ids[~mask] == 0).all()


def test_token_table():
    prompts = Prompts.from_texts(TEXTS, byte_tokenizer(), max_tokens=7, on_long="window")
    table = prompts.token_table()
    assert set(map(len, table.values())) == {prompts.n_tokens}
    for i in range(len(prompts)):
        rows = table["prompt"] == i
        assert table["token_id"][rows].tolist() == prompts.ids(i).tolist()
        assert table["position"][rows].tolist() == list(range(prompts.lengths[i]))
        assert set(table["document"][rows]) == {prompts.documents[i]}
