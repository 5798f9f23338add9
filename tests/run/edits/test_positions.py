"""Flags of all tokens of a run: the same places as any other way to say them, in any batch and share."""

import numpy as np
import pytest
import torch
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.run.edits.positions import placed

E, S = ti.edits, ti.Site
LENGTHS = [9, 6, 12]


def test_flags_stand_where_their_tokens_are():
    prompts = some_prompts(LENGTHS)
    flags = np.random.default_rng(0).random(prompts.n_tokens) < 0.4
    for numbers in ([0, 1, 2], [2, 0], [1]):
        _, mask, _ = prompts.padded(numbers)
        found = placed(flags, prompts, numbers, torch.from_numpy(mask)).numpy()
        for row, n in enumerate(numbers):
            own = flags[prompts.starts[n] : prompts.starts[n + 1]]
            assert found[row, : LENGTHS[n]].tolist() == own.tolist()
            assert not found[row, LENGTHS[n] :].any()


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_edits_by_flags_equal_edits_by_numbers(kind):
    prompts = some_prompts(LENGTHS)
    table = prompts.token_table()["position"]
    asked = {"n": ti.geometry.TokenNorms()}

    def found(*edits):
        return ti.measure(tiny(), prompts, asked, edits=edits, batch_tokens=13, progress=False)["n"].to_dataset()

    for flagged, numbered in (
        (E.zero(S("mlp_out", 1), kind(table == 3)), E.zero(S("mlp_out", 1), [3])),
        (E.knock_out(kind(table == 1), kind(table >= 4)), E.knock_out([1], slice(4, None))),
    ):
        a, b = found(flagged), found(numbered)
        for name, v in b.data_vars.items():
            np.testing.assert_array_equal(a[name].values, v.values, str(name))
        assert not a["norm"].equals(found()["norm"])


def test_flags_of_other_prompts_are_refused():
    with pytest.raises(ValueError, match="positions: 26 flags for 27 tokens of all prompts"):
        ti.measure(tiny(), some_prompts(LENGTHS), {"n": ti.geometry.TokenNorms()}, progress=False,
                   edits=[E.zero(S("resid", 1), np.ones(26, bool))])  # fmt: skip
