"""Questions with a step in between: answers worked out from the text alone, no two alike, what is never written."""

import re

import pytest

from tokinterp.fillers.questions import ELEMENTS, TIMES, equation_questions, fact_questions, letter_questions

FACTOR = {words: n for n, words in TIMES.items()}


def solved(text, known):
    """The value of a definition or of a question."""
    if text.isdecimal():
        return int(text)
    times, name, sign, constant = re.fullmatch(r"(.+) the number for (\w+) (plus|minus) (\d+)", text).groups()
    return FACTOR[times] * known[name] + int(constant) * (1 if sign == "plus" else -1)


@pytest.mark.parametrize(("terms", "depth"), [(5, 1), (7, 3)])
def test_answers_are_those_of_the_equations_read_from_above(terms, depth):
    made = equation_questions(60, terms=terms, depth=depth)
    assert len({p for p, _ in made}) == 60
    for prompt, answer in made:
        *lines, question, _, end = prompt.split("\n")
        assert end == "Answer:"
        known = {}
        for line in lines:
            name, text = line.split(" = ")
            assert re.fullmatch("[^aeiou][aeiou][^aeiou]", name)
            known[name] = solved(text, known)  # what it needs stands above it
        assert len(known) == terms
        asked = re.fullmatch(r"Question: What is (.+)\?", question)[1]
        assert answer == f" {solved(asked, known)}"
        assert not answer.startswith(" -")
        links, name = 0, re.search(r"for (\w+)", asked)[1]
        texts = dict(line.split(" = ") for line in lines)
        while not texts[name].isdecimal():
            links, name = links + 1, re.search(r"for (\w+)", texts[name])[1]
        assert links == depth


def test_the_easy_variant_has_answers_of_at_most_three_digits():
    answers = [int(a) for _, a in equation_questions(80, largest=2, constants=30)]
    assert max(answers) < 1000
    assert min(answers) >= 0


def test_letters_are_those_of_the_names():
    made = dict(letter_questions(300))
    assert len(made) == 300
    assert (ELEMENTS[2], ELEMENTS[46], ELEMENTS[81]) == ("Lithium", "Silver", "Lead")
    layout = "What is the {} letter of the chemical element with atomic number {}?\n\nAnswer:"
    for place, number, letter in (("third", 47, "l"), ("last", 95, "m"), ("second", 36, "r"), ("third", 4, "r")):
        assert made[layout.format(place, number)] == f" {letter}"


def test_sums_are_those_of_two_different_elements():
    for prompt, answer in fact_questions(200):
        a, b = re.findall(r"atomic number of (\w+)", prompt)
        assert a != b
        assert int(answer) == ELEMENTS.index(a) + ELEMENTS.index(b) + 2


def test_another_seed_asks_others_and_too_many_are_refused():
    for make in (equation_questions, letter_questions, fact_questions):
        assert make(20) == make(20)
        assert make(20) != make(20, seed=1)
    with pytest.raises(ValueError, match=r"depth=5: 5 terms hold a chain of 4 at most"):
        equation_questions(2, depth=5)
    with pytest.raises(ValueError, match=r"n=301: there are 300 such questions"):
        letter_questions(301)
