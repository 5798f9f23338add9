"""Items are exact to the token, and their kinds differ in nothing else."""

import numpy as np
import pytest
from answering import ask, pad
from tiny import tiny_lm

import tokinterp as ti
from tokinterp.fillers.decision import verdict
from tokinterp.fillers.insertion import insert
from tokinterp.text.items import KINDS, Tokens, build_items

QUESTIONS = ti.bundled_questions("cloze")[:12]


@pytest.fixture(scope="module")
def found(bundled):
    return insert(bundled, QUESTIONS, n_fillers=[2, 10], kinds=["dots", "words"])


# -- items ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("placement", ["post", "pre"])
def test_items_are_exact_to_the_token(bundled, kind, placement):
    plain = build_items(bundled, QUESTIONS)
    items = build_items(bundled, QUESTIONS, n_fillers=10, kind=kind, placement=placement)
    for i in range(len(items)):
        ids = items.ids[i]
        a, b = items.filler[i]
        assert b - a == 10
        np.testing.assert_array_equal(np.delete(ids, np.arange(a, b)), plain.ids[i])
        assert (a == 1) if placement == "pre" else (b == items.cue[i, 0])
        again = bundled.tokenizer(items.prompts.text(i))["input_ids"]
        assert list(again) == ids.tolist()
        assert not np.isin(items.answers[i], ids[a:b]).any() or kind != "words"
    assert plain.prompts.text(0) == QUESTIONS[0].prompt
    assert items.mark("filler").sum() == 10 * len(items)
    assert items.mark("filler").shape == (items.prompts.n_tokens,)


def test_random_words_are_of_their_seed_and_never_of_the_answer(bundled):
    tokens = Tokens(bundled)
    known = tokens.words[:20].tolist()
    tokens.__dict__["words"] = np.array(known)
    drawn = tokens.fillers("words", 400, np.random.default_rng(0), without=known[:2])
    assert {*drawn} == {*known[2:]}
    made = [build_items(bundled, QUESTIONS[:2], n_fillers=9, kind="words", seed=s) for s in (0, 1, 0)]
    one, other, again = (items.ids[0].tolist() for items in made)
    assert one == again != other
    same = build_items(bundled, [("The sky is", " blue"), ("The sea is", " blue")], n_fillers=9, kind="words")
    first, second = (ids[a:b].tolist() for ids, (a, b) in zip(same.ids, same.filler, strict=True))
    assert first != second


def test_as_many_fillers_fit_as_the_refusal_says(bundled):
    asked = [("Luanda is the capital and largest city of", " Angola")]
    with pytest.raises(ValueError, match=r"at most \d+ fillers fit") as refused:
        build_items(bundled, asked, n_fillers=4000, kind="words", exact=False)
    most = int(str(refused.value).split("at most ")[1].split()[0])
    items = build_items(bundled, asked, n_fillers=most, kind="words", exact=False)
    assert pad(items, [0]).ids.shape[1] == bundled.info.max_tokens
    with pytest.raises(ValueError, match=f"at most {most} fillers fit"):
        build_items(bundled, asked, n_fillers=most + 1, kind="words", exact=False)


def test_kinds_have_equal_token_counts_and_words_differ_by_item(bundled):
    made = {k: build_items(bundled, QUESTIONS, n_fillers=20, kind=k) for k in KINDS}
    for items in made.values():
        assert [len(i) for i in items.ids] == [len(i) for i in made["dots"].ids]
    words = [i[a:b].tolist() for i, (a, b) in zip(made["words"].ids, made["words"].filler, strict=True)]
    assert words[0] != words[1]
    count, shuffled = made["counting"], made["shuffled counting"]
    one, other = (x.ids[0][slice(*x.filler[0])] for x in (count, shuffled))
    assert sorted(one) == sorted(other)
    assert one.tolist() != other.tolist()


def test_cue_and_announcement(bundled):
    items = build_items(bundled, [("The sky is", " blue")], n_fillers=4, cue=" Answer:", announce="Dots follow.\n")
    assert items.prompts.text(0) == "Dots follow.\nThe sky is . . Answer:"


def test_demonstrations_keep_their_fillers_when_the_target_loses_its_own(bundled):
    """The truncated item is the whole one without the target's fillers, those of the demonstrations untouched."""
    shown, asked = QUESTIONS[:2], QUESTIONS[2:5]
    for kind, placement in (("dots", "post"), ("words", "post"), ("dots", "pre")):
        shared = {"kind": kind, "placement": placement, "demonstrations": shown}
        whole = build_items(bundled, asked, n_fillers=4, **shared)
        cut = build_items(bundled, asked, demo_fillers=4, **shared)
        none = build_items(bundled, asked, **shared)
        for i in range(len(asked)):
            a, b = whole.filler[i]
            np.testing.assert_array_equal(np.delete(whole.ids[i], np.arange(a, b)), cut.ids[i])
            assert b - a == 4
            assert len(cut.ids[i]) == len(none.ids[i]) + 2 * 4
            assert none.prompts.text(i) == "".join(f"{q.prompt}{q.answer}\n\n" for q in shown) + asked[i].prompt
    assert whole.filler.min() > len(none.ids[0]) // 2
    with pytest.raises(ValueError, match=r"demonstration 0 .* is one of the questions"):
        build_items(bundled, asked, demonstrations=asked[1:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": ".", "n_fillers": 4}, r"filler '\.' merges with its neighbours .* become \["),
        ({"kind": " .", "n_fillers": 5}, "must be a multiple of 2"),
        ({"n_fillers": 4000}, r"make 4\d\d\d tokens, .* has room for .* at most \d+ fillers fit"),
        ({"n_fillers": -1}, "n_fillers=-1: give .* at least 0"),
        ({"placement": "behind"}, "placement='behind': give 'post' or 'pre'"),
        ({"questions": []}, "no questions"),
        ({"questions": [("The sky is", "blue")], "cue": None}, None),
        ({"kind": "xq", "n_fillers": 3}, "merges|multiple"),
    ],
)
def test_bad_items(bundled, settings, message):
    if message is None:
        build_items(bundled, **settings)
        return
    with pytest.raises(ValueError, match=message):
        build_items(bundled, **{"questions": QUESTIONS, **settings})


def test_a_filler_that_merges_with_the_cue_says_what_it_became(bundled):
    """A filler that stands by itself but not before this cue."""
    tokens = Tokens(bundled)
    text = "\n"
    assert tokens.unit(text)
    merged = None
    for kind in ("\n", " .", " ,", " -", "\t", "!"):
        for cue in (" other", "\n\nx", ".", "..", ",", "!!", "-"):
            try:
                build_items(
                    bundled, [("The sky is", " blue")], n_fillers=2 * len(tokens.unit(kind)), kind=kind, cue=cue
                )
            except ValueError as error:
                merged = merged or str(error)
    assert merged is not None
    assert "become" in merged
    assert "exact=False" in merged


@pytest.mark.slow
def test_demonstrations_come_before_every_item(bundled):
    shown, asked = QUESTIONS[3:5], QUESTIONS[:3]
    ds = insert(bundled, asked, n_fillers=[4], kinds=["dots"], announce="", demonstrations=shown)
    plain = insert(bundled, asked, n_fillers=[4], kinds=["dots"], announce="")
    for k in (0, 4):
        items = build_items(bundled, asked, n_fillers=k, demonstrations=shown)
        answers = ask(bundled, pad(items, [0, 1, 2]))
        got = ds["log_prob"].sel(n_fillers=k, placement="post", filler="dots")
        np.testing.assert_allclose(got, answers.log_prob.cpu().numpy(), atol=1e-4)
        assert float(abs(got - plain["log_prob"].sel(n_fillers=k, placement="post", filler="dots")).max()) > 1e-2
    with pytest.raises(ValueError, match="demonstration"):
        verdict(bundled, asked, n_fillers=4, demonstrations=asked[:1])
    found = verdict(bundled, asked, n_fillers=4, n_boot=100, demonstrations=shown)
    assert found.attrs["verdict"] in ("used", "not shown")


def test_a_model_without_tokenizer_is_told_so():
    model = ti.wrap(tiny_lm("llama"))
    with pytest.raises(ValueError, match="has no tokenizer"):
        build_items(model, QUESTIONS)
