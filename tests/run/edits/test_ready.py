"""Named marks, values in order, and donors of other prompts: the same numbers as by hand."""

import numpy as np
import pytest
import torch
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.run.stream import capture
from tokinterp.text.marks import mark

E, S = ti.edits, ti.Site
LENGTHS = [9, 6, 12]
LAST = S("resid", 3)


def marked(lengths=LENGTHS, seed=0):
    prompts = some_prompts(lengths, seed)
    return mark(prompts, hidden=[[2, 4], [1, 3], [5, 8]], last=[[n - 1, n] for n in lengths])


def rows(prompts, *edits, model=None):
    """The last layer of all prompts in one batch, and of each alone: they agree."""
    model = model or tiny()
    every = capture(model, prompts, range(len(prompts)), [LAST], edits).rows(3)
    each = [capture(model, prompts, [n], [LAST], edits).rows(3) for n in range(len(prompts))]
    torch.testing.assert_close(every, torch.cat(each), rtol=1e-4, atol=1e-5)
    return every


def test_marks_are_flags_by_name_and_stay_with_their_prompts():
    prompts, flags = marked(), marked().marks["hidden"]
    assert flags.sum() == 2 + 2 + 3
    for named, flagged in (
        (E.zero(S("mlp_out", 1), "hidden"), E.zero(S("mlp_out", 1), flags)),
        (E.knock_out("hidden", "last"), E.knock_out(flags, slice(-1, None))),
        (E.knock_out("hidden", blocks=[1]), E.knock_out(flags, blocks=[1])),
    ):
        assert torch.equal(rows(prompts, named), rows(prompts, flagged))
    part = prompts[[2, 0]]
    assert part.marks["hidden"].tolist() == np.concatenate([flags[15:], flags[:9]]).tolist()
    plain = some_prompts(LENGTHS)
    assert len({plain.hash, prompts.hash, mark(plain, hidden=flags).hash, mark(plain, other=flags).hash}) == 4
    assert plain.marks == {}


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda: E.zero(S("resid", 1), "fillers"), r"positions='fillers': .* no mark of this name \(hidden, last\)"),
        (lambda: E.knock_out("hidden", "answer"), "queries: positions='answer'"),
        (lambda: E.patch(S("resid", 1), "last", donor=0, source="end"), "source: positions='end'"),
        (lambda: E.renumber(np.arange(26)), "26 places for 27 tokens"),
        (lambda: E.fill(S("resid", 1), torch.zeros(2, 32), "hidden"), "value of 2 positions .* a prompt has 3"),
        (lambda: E.fill(S("resid", 1), torch.zeros(3, 31), "hidden"), r"\(chosen position, 32\) is needed"),
        (lambda: E.patch(S("resid", 1), "last", donor=3, source="last"), "no prompt 3: the run has prompts 0 to 2"),
        (lambda: E.patch(S("resid", 1), "last", donor=1, prompts=some_prompts([4])), "the donors are prompts 0 to 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_the_pass(edit, says, monkeypatch):
    model, prompts = tiny(), marked()
    monkeypatch.setattr(type(model), "run", lambda *_a, **_k: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=says) as error:
        ti.measure(model, prompts, {"n": ti.geometry.TokenNorms()}, edits=[edit()], progress=False)
    assert "\n" not in str(error.value)


def test_fill_puts_the_first_value_at_the_first_chosen_position_of_each_prompt():
    prompts, value = marked(), torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    found = rows(prompts, E.fill(S("resid", 1), value, "hidden"))
    for n, (start, stop) in enumerate([[2, 4], [1, 3], [5, 8]]):
        whole = torch.zeros(LENGTHS[n], 32)
        whole[start:stop] = value[: stop - start]
        own = capture(tiny(), prompts[[n]], [0], [LAST], [E.replace(S("resid", 1), whole, range(start, stop))])
        torch.testing.assert_close(found[prompts.starts[n] : prompts.starts[n + 1]], own.rows(3), rtol=1e-4, atol=1e-5)


def test_donors_of_other_prompts_give_what_they_have():
    clean, corrupted = marked([8, 11, 9], seed=1), marked()
    at = ("key", "value")
    edits = [E.patch(S(n, 1), "last", donor=[2, 0, 1], source="last", prompts=clean) for n in at]
    found = capture(tiny(), corrupted, [0, 1, 2], [LAST, *(S(n, 1) for n in at)], edits)
    given = capture(tiny(), clean, [0, 1, 2], [S(n, 1) for n in at])
    for name in at:
        for n, d in enumerate([2, 0, 1]):
            here, there = (batch.activations[S(name, 1)] for batch in (found, given))
            assert torch.equal(here[n, LENGTHS[n] - 1], there[d, clean.lengths[d] - 1])
    others = E.patch(S("key", 1), "last", donor=[2, 0, 1], source="last", prompts=corrupted)
    assert edits[0].describe() != others.describe()


def test_donors_are_run_once_for_all_sites(monkeypatch):
    model, prompts, ran = tiny(), some_prompts([6, 6, 6]), []
    run = type(model).run
    monkeypatch.setattr(type(model), "run", lambda self, ids, *a, **k: ran.append(len(ids)) or run(self, ids, *a, **k))
    edits = [E.patch(S("resid", n), [2, 3], donor=[1, 2, 0], source=[2, 3]) for n in range(3)]
    capture(model, prompts, [0, 1, 2], [LAST], edits)
    assert ran == [3, 3]


def test_a_patch_from_itself_changes_nothing_at_all():
    prompts = marked()
    edits = [E.patch(S("resid", n), "hidden", donor=[0, 1, 2], source="hidden") for n in range(3)]
    assert torch.equal(rows(prompts, *edits), rows(prompts))


def test_tokens_are_renumbered_once(monkeypatch):
    """Of two numberings one alone would count, and the result would name both."""
    prompts, places = marked(), np.concatenate([np.arange(n) for n in LENGTHS])
    monkeypatch.setattr(type(tiny()), "run", lambda *_a, **_k: pytest.fail("the model was run"))
    edits = [E.renumber(places), E.renumber(places + 1)]
    with pytest.raises(ValueError, match="edits: 2 of them renumber the tokens"):
        ti.measure(tiny(), prompts, {"n": ti.geometry.TokenNorms()}, edits=edits, progress=False)
