"""Words in their contexts, other splits of them, typing errors, and non-words."""

from collections import Counter

import numpy as np
import pytest
from text_helpers import lexicon_of, tokenizer

import tokinterp as ti
from tokinterp.lexicon.cases import natural_cases, split_cases, typo_cases
from tokinterp.lexicon.word_ends import words_and_nonwords
from tokinterp.lexicon.words import Lexicon, word_ids
from tokinterp.text.pieces import Pieces

LETTERS = "abcdefgh"
NAMES = ["bundled"]


@pytest.fixture(scope="module")
def lexicon(bundled):
    return lexicon_of(bundled)


def pieces_of(*names):
    """Pieces of a vocabulary of these strings."""
    out = Pieces.__new__(Pieces)
    out.id_of, out.longest = {p: n for n, p in enumerate(names)}, max(map(len, names))
    return out


@pytest.mark.parametrize("name", NAMES)
def test_words_stand_in_the_text_where_the_lexicon_says(name):
    lexicon = lexicon_of(tokenizer(name))
    prompts = lexicon.prompts
    assert len(lexicon) > 500
    for n in range(0, len(lexicon), 97):
        i, a = int(lexicon.prompt[n]), int(lexicon.start[n])
        ids = prompts.ids(i)[a : a + len(lexicon.ids[n])]
        assert tuple(ids.tolist()) == lexicon.ids[n]
        assert lexicon.text[n].isalpha()
        offsets = prompts.offsets(i)[a : a + len(ids)]
        assert prompts.text(i)[offsets[0, 0] : offsets[-1, 1]].strip() == lexicon.text[n]
    # In running text a word has the tokens that it has by itself.
    same = [a == b for a, b in zip(lexicon.ids, word_ids([" " + t for t in lexicon.text], prompts.vocabulary))]  # noqa: B905
    assert np.mean(same) > 0.99


def test_distinct_words_are_drawn_once_each(lexicon):
    every = lexicon.distinct()
    assert len({lexicon.ids[n] for n in every}) == len(every) == len(set(lexicon.ids))
    few = lexicon.distinct(20, n_tokens=(2,), min_letters=5, min_context=30)
    assert len(few) == 20
    assert all(len(lexicon.ids[n]) == 2 and len(lexicon.text[n]) >= 5 and lexicon.start[n] >= 30 for n in few)
    assert (few == lexicon.distinct(20, n_tokens=(2,), min_letters=5, min_context=30)).all()
    assert (few != lexicon.distinct(20, n_tokens=(2,), min_letters=5, min_context=30, seed=1)).any()


# -- non-words ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("parts_by", ["token", "word"])
@pytest.mark.parametrize("canonical", [True, False])
def test_nonwords_match_words_in_each_part(lexicon, canonical, parts_by):
    items = words_and_nonwords(lexicon, 400, canonical=canonical, parts_by=parts_by)
    known = {t.lower() for t in lexicon.text}
    vocabulary = lexicon.prompts.vocabulary
    ids, is_word, part = np.array(items.ids, object), items.is_word, items.part
    assert is_word.sum() > 300
    assert (~is_word).sum() > 0.95 * is_word.sum()
    texts = ["".join(vocabulary.strings(w)) for w in ids]
    for text, word in zip(texts, is_word, strict=True):
        assert (text[1:].lower() in known) == word
    if canonical:
        assert word_ids(texts, vocabulary) == items.ids
    missing = 0
    for p in range(5):
        for place in (0, -2, -1):
            a, b = (Counter(w[place] for w in ids[(part == p) & x]) for x in (is_word, ~is_word))
            missing += (a - b).total()
            assert not b - a  # no token comes from elsewhere
    assert missing <= 3 * (is_word.sum() - (~is_word).sum())
    if parts_by == "token":
        last = np.array([w[-1] for w in ids])
        assert all(len(set(part[last == t])) == 1 for t in set(last))


def test_parts_are_drawn_by_the_seed(lexicon):
    found = [words_and_nonwords(lexicon, None, sizes=(2,), canonical=False, parts=3, seed=s) for s in (0, 0, 1)]
    one, again, other = ({w[-1]: p for w, p in zip(x.ids, x.part.tolist(), strict=True)} for x in found)
    assert one == again
    assert one.keys() == other.keys()
    assert 0.1 < np.mean([one[t] == other[t] for t in one]) < 0.6


def test_bad_input(lexicon):
    with pytest.raises(ValueError, match=r"sizes=\(1, 2\): give a list, each .* of at least 2"):
        split_cases(lexicon, (1, 2))
    with pytest.raises(ValueError, match=r"typos=\['drop'\]: 'drop' is none of 'substitute', 'delete'"):
        typo_cases(lexicon, ["drop"])
    with pytest.raises(ValueError, match=r"min_letters=30, .*: the corpus has 0 words of one token"):
        split_cases(lexicon, min_letters=30)
    with pytest.raises(ValueError, match=r"sizes=\[9\], min_letters=4, min_context=8: no word of so many tokens"):
        natural_cases(lexicon, (9,))
    with pytest.raises(ValueError, match="parts=1: give a whole number of at least 2"):
        words_and_nonwords(lexicon, parts=1)
    with pytest.raises(ValueError, match="too few for 5 parts"):
        words_and_nonwords(lexicon, 3)
    with pytest.raises(ValueError, match="prompts: none of the 1 has a word of letters after a space"):
        Lexicon.of(ti.Prompts.from_texts(["1 2 3 ..."], tokenizer(NAMES[0])))
    bare = Lexicon.of(ti.Prompts.from_texts(["the river flows"], tokenizer(NAMES[0])))
    with pytest.raises(ValueError, match="two are needed"):
        typo_cases(bare)
