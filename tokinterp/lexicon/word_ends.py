"""Does the last token of a word know that it ends a word? k nearest neighbours, words against non-words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Unpack

import numpy as np
import torch
import xarray as xr

from ..kernels.state import neutral
from ..models.steady import steady
from ..results.dataset import bound_coord, layer_coords, variable
from ..results.documents import interval_name
from ..run.measurement import choose_layers
from ..run.sites import resid
from ..run.walk import Walk, Walker, walked
from ..settings import checked, count, names, one_of, several
from ..stats.resample import ratio, resample
from ..text.prompts import Prompts
from .kernels import neighbour_votes
from .spelling import recombine
from .words import word_ids

if TYPE_CHECKING:
    from ..models.base import Model
    from ..run.batch import Batch
    from .words import Lexicon

PLACES = ("last", "penultimate")
PARTS = ("token", "word")
STATES = 2**32
"""Bytes of states held at once; more layers are read in several walks."""
PAPER = "Kaplan et al. 2025, arXiv 2410.05864"


class WordSet(NamedTuple):
    """Words and non-words, and the parts into which they are divided to be told apart.

    Attributes
    ----------
    ids : list of tuple of int
        (item,) tokens, two or more each.
    is_word : numpy.ndarray
        (item,) bool.
    part : numpy.ndarray
        (item,) int64: neighbours of an item come from the other parts.
    """

    ids: list[tuple[int, ...]]
    is_word: np.ndarray
    part: np.ndarray


@checked(n_words=count(1), sizes=several(count(2), 1), min_letters=count(1), parts=count(2), parts_by=one_of(*PARTS))
@neutral()
def words_and_nonwords(
    lexicon: Lexicon,
    n_words: int | None = 10_000,
    *,
    sizes: Sequence[int] = (2, 3, 4, 5),
    min_letters: int = 4,
    canonical: bool = True,
    parts: int = 5,
    parts_by: str = "token",
    seed: int = 0,
) -> WordSet:
    """Return words of several tokens, and non-words put together from the same tokens.

    Each part by itself has the same tokens equally often at each place of words and of non-words (but for the few
    non-words that could not be made), so that no token tells anything.  Without that, a word would have one word less
    with its own tokens among the others, but as many non-words, and the accuracy would lie below one half.

    Parameters
    ----------
    lexicon : Lexicon
        Words of a corpus.
    n_words : int, optional
        Words drawn.
    sizes : sequence of int
        Numbers of tokens.
    min_letters : int
        Fewest letters of a word.
    canonical : bool
        Whether the tokenizer must cut a non-word into the very tokens it was made of, as it does with a word. Else (as
        published) a pair of tokens that never stand side by side gives a non-word away.
    parts : int
        For the cross-validation.
    parts_by : {"token", "word"}
        "token": all words with the same last token are in one part, which is then new to the neighbours that vote;
        "word": words are divided at random.
    seed : int
        Of the draw.

    Returns
    -------
    WordSet

    Raises
    ------
    ValueError
        If no non-word can be made, or there are fewer words (or last tokens) than parts.

    References
    ----------
    Kaplan et al. 2025, arXiv 2410.05864

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = [t.text for t in ti.bundled_texts()]
    >>> lexicon = ti.lexicon.Lexicon.of(ti.Prompts.from_texts(texts, ti.load_model(), max_tokens=256))
    >>> items = ti.lexicon.words_and_nonwords(lexicon, sizes=(2, 3), parts=2)
    >>> int(items.is_word.sum()) * 2 == len(items.is_word)
    True
    """
    chosen = lexicon.distinct(n_words, n_tokens=sizes, min_letters=min_letters, seed=seed)
    words = [lexicon.ids[n] for n in chosen.tolist()]
    vocabulary, known = lexicon.prompts.vocabulary, {t.lower() for t in lexicon.text}

    def accepts(candidates: list[tuple[int, ...]]) -> list[bool]:
        texts = [b"".join(vocabulary.bytes(ids)).decode("utf-8", "replace") for ids in candidates]
        new = [t[1:].lower() not in known for t in texts]
        if not canonical:
            return new
        again = word_ids(texts, vocabulary)
        return [n and a == c for n, a, c in zip(new, again, candidates, strict=True)]

    group = np.unique([w[-1] if parts_by == "token" else n for n, w in enumerate(words)], return_inverse=True)[1]
    n_groups = int(group.max(initial=-1)) + 1
    if n_groups < parts:
        raise ValueError(
            f"{len(words)} words of {list(sizes)} tokens make {n_groups} groups, too few for {parts} parts: more text"
        )
    part = (np.random.default_rng(seed).permutation(n_groups) % parts)[group]
    ids: list[tuple[int, ...]] = []
    is_word, where = [], []
    for p in range(parts):
        for size in sizes:
            mine = [w for w, q in zip(words, part.tolist(), strict=True) if q == p and len(w) == size]
            made = recombine(mine, accepts, seed)
            if made:
                ids += [*mine, *made]
                is_word += [True] * len(mine) + [False] * len(made)
                where += [p] * (len(mine) + len(made))
    if len(set(where)) < 2:
        raise ValueError(
            f"{len(words)} words of {list(sizes)} tokens gave {is_word.count(False)} non-words: give more text, or "
            "canonical=False"
        )
    return WordSet(ids, np.array(is_word), np.array(where, dtype=np.int64))


@checked(k=count(1), places=names(*PLACES, least=1))
@steady
def word_probe(
    model: Model,
    items: WordSet,
    layers: Iterable[int] | None = None,
    *,
    k: int = 4,
    places: Sequence[str] = PLACES,
    n_boot: int = 500,
    level: float = 0.95,
    seed: int = 0,
    **walk: Unpack[Walk],
) -> xr.Dataset:
    """Tell words from non-words by their k nearest neighbours at every layer, cross-validated.

    Each word is run alone after BOS (where the tokenizer has one).

    Parameters
    ----------
    model : Model
        The model.
    items : WordSet
        Words, non-words and parts; see `words_and_nonwords`.
    layers : iterable of int, optional
        All by default.
    k : int
        Neighbours that vote, by Euclidean distance; an even vote counts half.
    places : sequence of {"last", "penultimate"}
        Tokens at which the state is taken. The penultimate token does not see the last one: what it can tell shows how
        much of the accuracy at the last token comes from the pieces before.
    n_boot, level, seed
        Draws, level and seed of the bootstrap over tokens: items with the same token at the place are drawn together.
    **walk
        ``batch_tokens``, ``store``, ``checkpoint_every``, ``progress``: see `tokinterp.run.walk.Walk`.

    Returns
    -------
    xarray.Dataset
        (subset, layer), where ``subset`` is the place: ``accuracy`` (mean of the two classes), ``accuracy_interval``,
        ``words`` and ``nonwords`` (accuracy of each class); per subset ``n_words``, ``n_nonwords``, ``n_tokens``
        (different tokens at the place) and ``n_groups`` (the same: the intervals draw tokens, and are NaN where fewer
        than 3 tokens stand in a class).  Where both places are asked for, per layer ``difference``, the accuracy at the
        last token less that at the penultimate one, of the same items, with ``difference_interval``: drawn are last
        tokens, and penultimate ones, and the interval holds both outcomes.
        At layer 0 the state is that of the token, and the accuracy one half.

    Raises
    ------
    ValueError
        For an item of one token, no part with both kinds, or settings that do not fit.

    References
    ----------
    Kaplan et al. 2025, arXiv 2410.05864 (k = 4).

    Examples
    --------
    >>> import tokinterp as ti
    >>> from tokinterp.lexicon.words import Lexicon
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts([t.text for t in ti.bundled_texts("story")], model, max_tokens=256)
    >>> items = ti.lexicon.words_and_nonwords(Lexicon.of(prompts))
    >>> found = ti.lexicon.word_probe(model, items, [0, 4])
    >>> abs(float(found["accuracy"].sel(subset="last", layer=0)) - 0.5) < 0.03
    True
    """
    chosen = choose_layers(layers, model.info)
    both = [list(map(int, w)) for w in items.ids]
    is_word, part = np.asarray(items.is_word, bool), np.asarray(items.part)
    _check(both, is_word, part, k)
    prompts = Prompts.from_ids(both, model.tokenizer, bos=getattr(model.tokenizer, "bos_token_id", None) is not None)
    label, fold = (torch.from_numpy(x.astype(np.int64)).to(model.device) for x in (is_word, part))
    groups = {p: np.unique([w[-1 - PLACES.index(p)] for w in both], return_inverse=True)[1] for p in places}
    room = len(both) * len(places) * model.info.d_model * getattr(torch, model.info.dtype).itemsize
    size = max(1, STATES // room)
    v, dims = variable, ("subset", "layer")

    def make(walker: Walker) -> xr.Dataset:
        correct = np.full((len(places), len(chosen), len(both)), np.nan)
        for a in range(0, len(chosen), size):
            some = chosen[a : a + size]
            states = walker.rows(prompts, resid(some), partial(_states, layers=some, places=places))["states"]
            for p, i in np.ndindex(len(places), len(some)):
                votes = neighbour_votes(torch.from_numpy(states[:, p, i]).to(model.device), label, fold, k)
                says = torch.where(votes == 0.5, 0.5, (votes > 0.5).double()).masked_fill(votes.isnan(), torch.nan)
                correct[p, a + i] = torch.where(label == 1, says, 1 - says).cpu().numpy()
        share = [np.mean(correct[:, :, m], -1) for m in (is_word, ~is_word)]
        draw = partial(_interval, is_word=is_word, n_boot=n_boot, level=level, seed=seed)
        bounds = [draw(correct[p], group=groups[x]) for p, x in enumerate(places)]
        what = "accuracy of telling words from non-words, mean of both"
        over = interval_name(what, level, "tokens of both classes")
        found = {
            "accuracy": v(
                dims, (share[0] + share[1]) / 2, what, "1", PAPER, short="accuracy, word or non-word", range=(0, 1),
                chance=0.5,
            ),
            "accuracy_interval": v(("bound", *dims), np.stack(bounds, 1), over, "1"),
            "words": v(dims, share[0], "share of words taken for words", "1"),
            "nonwords": v(dims, share[1], "share of non-words taken for non-words", "1"),
        }  # fmt: skip
        if {*places} == {*PLACES}:
            last, before = (places.index(p) for p in PLACES)
            less = "accuracy at the last token less that at the penultimate one, of the same items"
            either = np.stack([draw(correct[last] - correct[before], group=groups[x]) for x in PLACES])
            widest = np.stack([either[:, 0].min(0), either[:, 1].max(0)])
            accuracy = (share[0] + share[1]) / 2
            found["difference"] = v("layer", accuracy[last] - accuracy[before], less, "1")
            found["difference_interval"] = v(("bound", "layer"), widest, interval_name(less, level, "tokens"), "1")
        return xr.Dataset({**found, **counts}, coords, {"groups": "tokens"})

    counts = {
        "n_words": v("subset", [int(is_word.sum())] * len(places), "words", "1"),
        "n_nonwords": v("subset", [int((~is_word).sum())] * len(places), "non-words", "1"),
        "n_tokens": v("subset", [int(groups[x].max()) + 1 for x in places], "different tokens at the place", "1"),
        "n_groups": v("subset", [int(groups[x].max()) + 1 for x in places], "tokens drawn for the intervals", "1"),
    }  # fmt: skip
    coords = {
        "subset": v("subset", np.array(places, object), "token of the word at which the state is taken", "1"),
        "bound": bound_coord(),
        **layer_coords(chosen, model.info),
    }
    settings = {"k": k, "places": list(places), "layers": chosen, "n_boot": n_boot, "level": level,
                "is_word": is_word, "part": part}  # fmt: skip
    return walked("word_probe", model, prompts, settings, make, seed, **walk)


def _check(both: list[list[int]], is_word: np.ndarray, part: np.ndarray, k: int) -> None:
    if not len(both) == len(is_word) == len(part):
        raise ValueError(f"{len(both)} items, {len(is_word)} kinds and {len(part)} parts: give one of each")
    short = [n for n, w in enumerate(both) if len(w) < 2]
    if short:
        raise ValueError(f"item {short[0]} has {len(both[short[0]])} tokens: words and non-words have two or more")
    if is_word.all() or not is_word.any() or len(np.unique(part)) < 2:
        raise ValueError(
            f"{is_word.sum()} words and {(~is_word).sum()} non-words in {len(np.unique(part))} parts: give both, in "
            "two parts or more"
        )
    room = len(both) - int(np.unique(part, return_counts=True)[1].max())
    if not 1 <= k <= room:
        raise ValueError(f"k={k}: the other parts have {room} items or more, so k lies between 1 and {room}")


def _states(batch: Batch, layers: list[int], places: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return (word, place, layer, d_model) states."""
    row = torch.arange(len(batch), dtype=torch.int64, device=batch.device)
    last = batch.mask.sum(1) - 1
    found = [[batch.resid(n)[row, last - PLACES.index(place)] for n in layers] for place in places]
    return {"states": torch.stack([torch.stack(of_place, 1) for of_place in found], 1)}


def _interval(
    correct: np.ndarray, is_word: np.ndarray, group: np.ndarray, n_boot: int, level: float, seed: int
) -> np.ndarray:
    """Return (bound, layer) interval of the mean over both classes of what is right, groups drawn with replacement."""
    n = int(group.max()) + 1
    both = (is_word, ~is_word)
    hits = [np.stack([np.bincount(group[m], row[m], n) for row in correct], 1) for m in both]
    cases = [np.bincount(group[m], minlength=n)[:, None] for m in both]
    have = np.full(len(correct), min((c > 0).sum() for c in cases))

    def accuracy(w: np.ndarray) -> np.ndarray:  # NaN in draws that miss a class
        return (ratio(w @ hits[0], w @ cases[0]) + ratio(w @ hits[1], w @ cases[1])) / 2

    return resample(accuracy, n, have, level=level, n_boot=n_boot, seed=seed)
