"""Batches over all prompts."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import some_prompts, tiny

import tokinterp as ti

LENGTHS = [5, 12, 1, 7, 12, 3]
S = ti.Site


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 60))
def test_stream_gives_every_prompt_once_within_the_budget(batch_tokens):
    prompts = some_prompts(LENGTHS)
    seen = []
    for batch in ti.stream(tiny(), prompts, [S("resid", 0)], batch_tokens=batch_tokens):
        assert batch.ids.numel() <= max(batch_tokens, max(batch.lengths)) or len(batch) == 1
        seen += batch.numbers
    assert sorted(seen) == list(range(len(LENGTHS)))
