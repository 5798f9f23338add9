"""Prompts that say something twice: what stands where, in the repeated, shuffled, clean and corrupted ones."""

import numpy as np
import pytest
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.attention.heads.copies import _reordered, copy_prompts

TEXTS = [
    "the river and the king to the sea and in the morning sting",
    "bring the ring in the spring to the evening and",
    "sing and ding to the wing in the sting and fling",
]


def made(length=12, sizes=(2, 3), n=8, **options):
    prompts = ti.Prompts.from_texts(TEXTS, tiny())
    return prompts, copy_prompts(tiny(), prompts, ti.Spans.words(TEXTS), length=length, sizes=sizes, n=n, **options)


@pytest.mark.parametrize("random", [False, True])
def test_each_prompt_says_its_beginning_twice_and_the_entity_once(random):
    prompts, c = made(random=random)
    found = ti.Spans.words(TEXTS).align(prompts)
    pairs = zip(found.prompt, found.start, found.stop, strict=True)
    words = {tuple(prompts.ids(p)[a:b].tolist()) for p, a, b in pairs}
    assert len({*c.entities}) == len(c.entities) or random
    assert {len(e) for e in c.entities} == {2, 3}
    assert all(e in words for e in c.entities) != random
    pools = [sorted(prompts.ids(i)[1:].tolist()) for i in range(3)]
    for i, entity in enumerate(c.entities):
        again, other = c.repeated.ids(i).tolist(), c.shuffled.ids(i).tolist()
        place = {k: np.flatnonzero(c.repeated.marks[k][c.repeated.starts[i] : c.repeated.starts[i + 1]])
                 for k in ("next", "end")}  # fmt: skip
        (a,), (b,) = place["next"], place["end"]
        assert tuple(again[a : b + 1]) == entity
        assert again[0] == 1
        assert again[-(a - 1) :] == again[1:a], "the last token is the one that the entity followed"
        assert 6 <= a - 1 <= 12 - len(entity)
        assert len(again) == 1 + 12 + 1 + a - 1
        assert other[: len(again) - a + 1] == again[: len(again) - a + 1]
        assert sorted(other) == sorted(again)
        assert other[-1] != again[-1]
        clean, corrupted = c.clean.ids(i).tolist(), c.corrupted.ids(i).tolist()
        half = 12 - len(entity)
        assert len(clean) == len(corrupted) == 1 + 12 + 1 + half + 1
        assert clean[1 : 1 + half] == clean[14:-1]
        assert tuple(clean[1 + half : 13]) == entity
        assert clean[13:] == corrupted[13:]
        assert clean[-1] == entity[0]
        assert any(set(clean[1 : 1 + half]) <= set(p) for p in pools), "the fillers of a prompt are of one text"


def test_the_same_seed_draws_the_same_and_another_does_not():
    same, again, other = (made(seed=s)[1].repeated.hash for s in (0, 0, 1))
    assert same == again != other


def test_a_shuffled_end_is_another_token_wherever_there_is_one():
    for seed in range(30):
        draw = np.random.default_rng(seed)
        assert _reordered([5, 6, 5, 6], draw)[-1] == 5
        assert sorted(_reordered([5, 6, 7], draw)) == [5, 6, 7]
    assert _reordered([5, 5], np.random.default_rng(0)) == [5, 5]


def test_what_makes_no_such_prompts_is_refused():
    words = ti.Spans.words(TEXTS)
    prompts = ti.Prompts.from_texts(TEXTS, tiny())
    with pytest.raises(ValueError, match=r"length=8: an entity of 5 tokens needs a length of 10 or more"):
        copy_prompts(tiny(), prompts, words, length=8)
    with pytest.raises(ValueError, match=r"length=40: prompts of up to 82 tokens do not fit the 64 of tiny-llama"):
        copy_prompts(tiny(), prompts, words, length=40)
    with pytest.raises(ValueError, match=r"none of the 2 has 29 tokens that are not special"):
        copy_prompts(tiny(), some_prompts([9, 12]), words, length=29)
    with pytest.raises(ValueError, match=r"spans: none of \d+ has \[12\] tokens"):
        copy_prompts(tiny(), prompts, words, length=25, sizes=[12])
