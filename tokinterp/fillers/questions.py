"""Questions that take a step in between: systems of equations, letters of names, sums of two facts."""

from __future__ import annotations

import numpy as np

from ..kernels.state import neutral
from ..settings import checked, count

TIMES = {2: "twice", 3: "three times", 4: "four times", 5: "five times", 6: "six times"}
CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"
PLACES = {"second": 1, "third": 2, "last": -1}
_NAMES = (
    "Hydrogen Helium Lithium Beryllium Boron Carbon Nitrogen Oxygen Fluorine Neon Sodium Magnesium Aluminum "
    "Silicon Phosphorus Sulfur Chlorine Argon Potassium Calcium Scandium Titanium Vanadium Chromium Manganese "
    "Iron Cobalt Nickel Copper Zinc Gallium Germanium Arsenic Selenium Bromine Krypton Rubidium Strontium Yttrium "
    "Zirconium Niobium Molybdenum Technetium Ruthenium Rhodium Palladium Silver Cadmium Indium Tin Antimony "
    "Tellurium Iodine Xenon Cesium Barium Lanthanum Cerium Praseodymium Neodymium Promethium Samarium Europium "
    "Gadolinium Terbium Dysprosium Holmium Erbium Thulium Ytterbium Lutetium Hafnium Tantalum Tungsten Rhenium "
    "Osmium Iridium Platinum Gold Mercury Thallium Lead Bismuth Polonium Astatine Radon Francium Radium Actinium "
    "Thorium Protactinium Uranium Neptunium Plutonium Americium Curium Berkelium Californium Einsteinium Fermium"
)
ELEMENTS = _NAMES.split()
"""Names of the chemical elements 1 to 100."""

CUE = "\n\nAnswer:"
"""What follows the fillers: ``cue=`` of `insert`, `intervene`, `read_fillers`."""


@checked(n=count(1), terms=count(2, 100), depth=count(1), largest=count(2, 6), constants=count(1))
@neutral()
def equation_questions(
    n: int = 500, *, terms: int = 5, depth: int = 1, largest: int = 3, constants: int = 50, seed: int = 42
) -> list[tuple[str, str]]:
    """Make questions about systems of equations, whose value in between is never written.

    Parameters
    ----------
    n : int
        Different questions.
    terms : int
        Definitions in each; those that are not needed distract.
    depth : int
        Definitions between the first number and the term that is asked for.
    largest, constants : int
        Largest factor and constant; 2 and 30 make the easy variant, whose answers have at most three digits.
    seed : int
        Of all draws.

    Returns
    -------
    list of (str, str)
        Prompt, which ends with `CUE`, and answer, a number from 0 on.

    Raises
    ------
    ValueError
        If the chain is longer than there are definitions.

    References
    ----------
    Brauer et al. 2026, github.com/kaleybrauer/filler-token-reasoning: the layout and the ranges of its questions.
    Nonsense terms are three letters as there, and here no list of words keeps English ones out.

    Examples
    --------
    >>> prompt, answer = equation_questions(1)[0]
    >>> prompt.count(" = "), answer.strip().isdecimal()
    (5, True)
    """
    if depth >= terms:
        raise ValueError(f"depth={depth}: {terms} terms hold a chain of {terms - 1} at most: give more terms")
    draw = np.random.default_rng([seed, terms, depth, largest, constants])
    out: dict[str, str] = {}
    while len(out) < n:
        prompt, answer = _system(draw, terms, depth, largest, constants)
        out.setdefault(prompt, answer)
    return list(out.items())


def _system(draw: np.random.Generator, terms: int, depth: int, largest: int, constants: int) -> tuple[str, str]:
    """Return one question and its answer."""
    values: dict[str, int] = {}
    shown: dict[str, str] = {}
    needs: dict[str, str] = {}

    def name() -> str:
        while True:
            new = "".join(str(draw.choice(list(c))) for c in (CONSONANTS, VOWELS, CONSONANTS))
            if new not in values:
                return new

    def number() -> str:
        new = name()
        values[new] = int(draw.integers(10, 100))
        shown[new] = str(values[new])
        return new

    def of(other: str) -> tuple[str, int]:
        while True:
            factor, constant = int(draw.integers(2, largest + 1)), int(draw.integers(1, constants + 1))
            plus = bool(draw.integers(2)) or factor * values[other] < constant
            text = f"{TIMES[factor]} the number for {other} {'plus' if plus else 'minus'} {constant}"
            return text, factor * values[other] + (constant if plus else -constant)

    def derived(other: str) -> str:
        new = name()
        shown[new], values[new] = of(other)
        needs[new] = other
        return new

    last = number()
    for _ in range(depth):
        last = derived(last)
    while len(values) < terms:
        _ = number() if draw.random() < 0.4 else derived(str(draw.choice(list(values))))
    order: list[str] = []
    while len(order) < terms:
        ready = [t for t in values if t not in order and needs.get(t, t) in [*order, t]]
        order.append(str(draw.choice(ready)))
    text, answer = of(last)
    lines = [f"{t} = {shown[t]}" for t in order]
    return "\n".join([*lines, f"Question: What is {text}?"]) + CUE, f" {answer}"


@checked(n=count(1))
@neutral()
def letter_questions(n: int = 285, *, seed: int = 42) -> list[tuple[str, str]]:
    """Make questions about a letter of the name of a chemical element that is given by its number.

    Parameters
    ----------
    n : int
        Different questions; there are 300.
    seed : int
        Of their order.

    Returns
    -------
    list of (str, str)
        Prompt, which ends with `CUE`, and answer, a small letter.

    References
    ----------
    Brauer et al. 2026, github.com/kaleybrauer/filler-token-reasoning.

    Examples
    --------
    >>> len(letter_questions(10))
    10
    """
    every = [
        (f"What is the {place} letter of the chemical element with atomic number {i + 1}?{CUE}", f" {name[k].lower()}")
        for i, name in enumerate(ELEMENTS) for place, k in PLACES.items()
    ]  # fmt: skip
    return _some(every, n, seed)


@checked(n=count(1))
@neutral()
def fact_questions(n: int = 500, *, seed: int = 42) -> list[tuple[str, str]]:
    """Make questions about the sum of the atomic numbers of two elements.

    Parameters
    ----------
    n : int
        Different questions; there are 9,900.
    seed : int
        Of their order.

    Returns
    -------
    list of (str, str)
        Prompt, which ends with `CUE`, and answer, a number.

    References
    ----------
    Brauer et al. 2026, github.com/kaleybrauer/filler-token-reasoning: its task of two facts, of one kind of facts.

    Examples
    --------
    >>> prompt, answer = fact_questions(1)[0]
    >>> prompt.count("the atomic number of"), answer.strip().isdecimal()
    (2, True)
    """
    every = [
        (f"What is the atomic number of {a} plus the atomic number of {b}?{CUE}", f" {i + j + 2}")
        for i, a in enumerate(ELEMENTS) for j, b in enumerate(ELEMENTS) if i != j
    ]  # fmt: skip
    return _some(every, n, seed)


def _some(every: list[tuple[str, str]], n: int, seed: int) -> list[tuple[str, str]]:
    """Return some questions in random order; ValueError where there are not as many."""
    if n > len(every):
        raise ValueError(f"n={n}: there are {len(every)} such questions: give fewer")
    return [every[i] for i in np.random.default_rng(seed).permutation(len(every))[:n]]
