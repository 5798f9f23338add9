"""Named sets of tokens, against going through the tokens one by one."""

import numpy as np
import pytest

import tokinterp as ti
from tokinterp.attention.token_sets import Marked, check_sets, padded, resolve, separator_ids


@pytest.fixture(scope="module")
def prompts(bundled):
    return ti.Prompts.from_texts(["The river bends, and runs. On!", "A cat: two dogs?"], bundled)


def test_sets_are_what_their_rules_say(prompts):
    own = np.zeros(prompts.n_tokens, dtype=bool)
    own[3] = True
    sets = {n: n for n in ("all", "first", "last", "special", "separators", "other", "stop word")} | {"own": own}
    found = dict(zip(sets, resolve(prompts, check_sets("keys", sets)), strict=True))
    strings = [s for i in range(2) for s in prompts.strings(i)]
    ends = [int(n) - 1 for n in prompts.starts[1:]]
    assert found["all"].all()
    assert np.flatnonzero(found["first"]).tolist() == [0, ends[0] + 1]
    assert np.flatnonzero(found["last"]).tolist() == ends
    assert np.flatnonzero(found["special"]).tolist() == [0, ends[0] + 1]
    where = np.flatnonzero(found["separators"])
    assert [strings[n].strip() for n in where] == [",", ".", "!", ":", "?"]
    assert {strings[n].strip().lower() for n in np.flatnonzero(found["stop word"])} == {"the", "and", "on", "a"}
    assert not found["other"].any()  # "all" is among the sets
    del sets["all"]
    rest = dict(zip(sets, resolve(prompts, check_sets("keys", sets)), strict=True))
    several = np.any([v for k, v in rest.items() if k != "other"], 0)
    assert (rest["other"] == ~several).all()
    assert rest["other"].any()


def test_sets_of_a_batch_are_padded_with_nothing(prompts, bundled):
    packed = resolve(prompts, {"last": "last", "all": "all"})
    batch = ti.capture(bundled, prompts, [1, 0], ti.resid([0]))
    found = padded(packed, batch)
    for row, i in enumerate((1, 0)):
        n = prompts.lengths[i]
        assert found[row, 1].tolist() == [True] * n + [False] * (found.shape[2] - n)
        assert found[row, 0].nonzero().tolist() == [[n - 1]]


def test_separators_are_found_by_their_text(prompts):
    found = separator_ids(prompts.vocabulary, prompts.token_ids)
    assert {s.strip() for s in prompts.vocabulary.strings(found)} == {",", ".", "!", ":", "?"}


def test_marks_print_as_what_they_mark():
    mask = np.array([True, False, True])
    assert repr(Marked(mask)).startswith("Marked(2 of 3 tokens, ")
    assert repr(Marked(mask)) != repr(Marked(~mask & [True, True, False] | [True, False, False]))
    for bad in (np.ones(3), np.ones((1, 3), dtype=bool)):
        with pytest.raises(ValueError, match="one bool per token"):
            Marked(bad)


def test_wrong_rules_are_named(prompts):
    with pytest.raises(ValueError, match=r"keys\['x'\]='lasst': give a rule .*they have none"):
        resolve(prompts, check_sets("keys", {"x": "lasst"}), "keys")
    with pytest.raises(ValueError, match=r"keys=\{\}: give a dictionary"):
        check_sets("keys", {})
    with pytest.raises(ValueError, match="set 'x' marks 3 tokens, the prompts have"):
        resolve(prompts, {"x": Marked(np.ones(3, dtype=bool))})


def test_marks_of_prompts_are_sets(prompts):
    river = np.zeros(prompts.n_tokens, dtype=bool)
    river[2:4] = True
    marked = ti.text.mark(prompts, river=river)
    found = resolve(marked, check_sets("keys", {"river": "river", "rest": "other"}))
    np.testing.assert_array_equal(found, [river, ~river])
    with pytest.raises(ValueError, match=r"keys\['x'\]='last': a rule and a mark of the prompts"):
        resolve(ti.text.mark(prompts, last=river), {"x": "last"}, "keys")
    with pytest.raises(ValueError, match=r"a mark of the prompts \(river\)"):
        resolve(marked, {"x": "rivers"})


def test_special_tokens_are_no_separators_whatever_their_text():
    texts = [".", " ,", "", "\n", "a.", "?!", " ", "</s>", "::", "-"]
    special = {".", " ", "</s>", ""}

    class Words:
        def strings(self, ids):
            return [texts[i] for i in ids]

        def special(self, ids):
            return np.array([texts[i] in special for i in ids])

    for keep in (special, set()):
        special = keep
        found = separator_ids(Words(), np.array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 8]))
        wanted = [i for i, t in enumerate(texts) if t and t not in keep and not t.strip(".,?!;: \n")]
        assert found.tolist() == wanted
    assert 2 not in found  # a token without text separates nothing
