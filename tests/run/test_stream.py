"""Batches over all prompts: each once, memory that runs out, and what is not finite."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.run.stream import AllNonfiniteError

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


def test_another_stream_starts_where_one_has_come_to():
    prompts = some_prompts(LENGTHS)
    whole = ti.stream(tiny(), prompts, [S("resid", 0)], batch_tokens=12)
    read = [(whole.read, batch.numbers) for batch in whole]
    assert [n for n, _ in read] == [1, 2, 3, 5, 6]
    for k, (at, _) in enumerate(read):
        rest = ti.stream(tiny(), prompts, [S("resid", 0)], batch_tokens=12, start=at)
        assert [batch.numbers for batch in rest] == [numbers for _, numbers in read[k + 1 :]]


def test_batches_are_halved_when_memory_runs_out(capsys):
    """In the pass or in what is made of the batch: only what follows is cut smaller, and nothing comes twice."""
    failures = []

    def numbers(batch):
        if batch.ids.numel() > 20 and len(failures) < 3 and 1 not in batch.numbers:
            failures.append(batch.ids.numel())
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch.numbers

    source = ti.stream(tiny(), some_prompts([6, 16, *[6] * 8]), [S("resid", 0)], batch_tokens=48)
    seen = list(source.each(numbers))
    assert seen[0] == [1, 0, 2]
    assert failures == [42, 24]  # of 7 and of 4 prompts
    assert source.batch_tokens == 16
    assert sorted(n for part in seen for n in part) == list(range(10))
    assert "batches of 16 tokens from here on" in capsys.readouterr().err

    def never(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError, match="too little memory for one prompt of 12 tokens: use shorter"):
        list(ti.stream(tiny(), some_prompts(LENGTHS), [S("resid", 0)]).each(never))


@pytest.mark.parametrize("batch_tokens", [12, 100])
def test_prompts_that_are_not_finite_are_left_out_and_named(batch_tokens, caplog):
    def sevens(ids, mask):
        return (mask.sum(1, keepdim=True) == 7).expand_as(mask)

    edit = ti.edits.replace(S("resid", 1), torch.full((32,), torch.nan), sevens)
    source = ti.stream(tiny(), some_prompts(LENGTHS), [S("resid", 2)], edits=[edit], batch_tokens=batch_tokens)
    assert sorted(n for batch in source for n in batch.numbers) == [0, 1, 2, 4, 5]
    assert source.left_out == {3: 2}
    assert source.read == 6
    assert "1 of 6 prompts give NaN or infinite activations and are left out (prompt 3: from layer 2 on)" in caplog.text
    every = ti.edits.replace(S("resid", 1), torch.full((32,), torch.nan))
    with pytest.raises(AllNonfiniteError, match=r"all 6 prompts give NaN .* \(prompt 1: from layer 1 on\)"):
        list(ti.stream(tiny(), some_prompts(LENGTHS), [S("resid", 1)], edits=[every]))
