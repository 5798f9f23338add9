"""Does the state of a one-token word know its letters? Linear probes for spelling, with matched baselines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import numpy as np
import torch
import xarray as xr

from ..models.steady import steady
from ..results.dataset import bound_coord, layer_coords, variable
from ..run.measurement import choose_layers
from ..run.sites import resid
from ..run.walk import Walk, Walker, walked
from ..settings import checked, count, instance, mapping, one_of, positive, short, string
from ..stats.jackknife import jackknife_interval, left_out
from ..stats.linear import predicted
from ..stats.resample import LEAST
from ..text.prompts import Prompts
from ..text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ..models.base import Model
    from ..run.batch import Batch

LETTERS = "abcdefghijklmnopqrstuvwxyz"
EDMAN = "Edman et al. 2024, CUTE, arXiv 2409.15452"
KINDS = ("state", "shuffled", "random", "length")
SAID = {
    "state": "of what a ridge regression on the state says",
    "shuffled": "of the same, labels exchanged among words of the same length",
    "random": "of the same on random vectors as wide as the state",
    "length": "of the same on length and token id alone",
}
FEWEST = 5  # words that have a letter, and that do not, to be scored
ROOM = 2**32
"""Bytes of states held at once; more layers are read in several walks."""


class WordTokens(NamedTuple):
    """Words that are one token each.

    Attributes
    ----------
    ids : numpy.ndarray
        (word,) token.
    text : list of str
        (word,) the word in small letters, without the space before it.
    """

    ids: np.ndarray
    text: list[str]


@checked(n_words=count(1), min_letters=count(1))
def word_tokens(model: Model, n_words: int | None = 2000, *, min_letters: int = 2, seed: int = 0) -> WordTokens:
    """Return tokens that are a space and letters a to z: of words, and of beginnings of words.

    Parameters
    ----------
    model : Model
        With its tokenizer.
    n_words : int, optional
        How many are drawn; all by default where there are fewer.
    min_letters : int
        Fewest letters.
    seed : int
        Of the draw.

    Raises
    ------
    ValueError
        If the vocabulary has none.

    Examples
    --------
    >>> import tokinterp as ti
    >>> words = ti.lexicon.word_tokens(ti.load_model(), 5)
    >>> len(words.ids), all(w.isalpha() for w in words.text)
    (5, True)
    """
    if model.tokenizer is None:
        raise ValueError(f"model={model.info.id}: it has no tokenizer: load it with one")
    vocabulary = Vocabulary(model.tokenizer, model.info.d_vocab)
    ids = vocabulary.ordinary
    shown = [b.decode("utf-8", "replace") for b in vocabulary.bytes(ids)]
    good = [
        n for n, s in enumerate(shown) if s[:1] == " " and s[1:].isascii() and s[1:].isalpha() and len(s) > min_letters
    ]
    if not good:
        raise ValueError(f"min_letters={min_letters}: {model.info.id} has no token of a space and so many letters")
    draw = np.random.default_rng(seed)
    if n_words is not None and len(good) > n_words:
        good = sorted(draw.choice(good, n_words, replace=False).tolist())
    return WordTokens(ids[good], [shown[n][1:].lower() for n in good])


@checked(
    words=instance("WordTokens"), split=one_of("word", "stem") | mapping(string, 1), folds=count(2), penalty=positive,
    letters=string,
)  # fmt: skip
@steady
def spelling_probe(
    model: Model, words: WordTokens, layers: Iterable[int] | None = None, *, letters: str = LETTERS,
    split: str | Mapping[str, str] = "stem", folds: int = 5, penalty: float = 0.1, seed: int = 0,
    **walk: Unpack[Walk],
) -> xr.Dataset:  # fmt: skip
    """Predict letters, first letter, last letter and length of one-token words from their states, cross-validated.

    Each word is run alone after BOS (where the tokenizer has one): at layer 0 its state is its embedding.

    Parameters
    ----------
    model : Model
        The model.
    words : WordTokens
        From `word_tokens`.
    layers : iterable of int, optional
        All by default.
    letters : str
        Which letters are looked for.
    split : str or mapping of str to str
        What is never divided between the words that a probe is fitted to and those it is tested on. ``"word"``: tokens
        of one word (in capitals and small letters).  ``"stem"``: words that begin with the same four letters, or with
        the same word of three, so that no form of a word of three letters or more helps another.  A mapping of words to
        their lemmas: words of one lemma.
    folds : int
        Parts of the cross-validation.
    penalty : float
        Of the ridge regression (scikit-learn's), in units of the mean variance of a channel.
    seed : int
        Of folds, exchanged labels and random vectors.
    **walk
        ``batch_tokens``, ``store``, ``checkpoint_every``, ``progress``: see `tokinterp.run.walk.Walk`.

    Returns
    -------
    xarray.Dataset
        ``auc`` (layer, letter): that a word with the letter scores higher than one without, of words that no probe was
        fitted to; ``matched_auc``: the same of pairs of words of one length alone; ``mean_auc`` and
        ``mean_matched_auc`` (layer) over letters, with intervals (jackknife over groups of ``split``);
        ``first_accuracy``, ``last_accuracy`` (layer): first and last letter said right; ``length_explained`` (layer):
        share of the variance of the length.  Each with its baselines: ``_shuffled``, labels exchanged among words of
        the same length, by groups; ``_random``, random vectors instead of states; ``_length``, a regression on length
        and token id (which is nearly the rank of frequency) alone.  ``n_words`` with each letter; letters that
        fewer than 5 words have, or lack, have NaN.

    Raises
    ------
    ValueError
        For fewer groups than folds, or a word without a lemma.

    Notes
    -----
    An area of one half is chance.  Longer words have more letters of every kind, so that a probe that knows the length
    alone has a larger ``auc``: what counts is ``matched_auc``, beyond that of ``_length``, which knows frequency too.
    The intervals are over the words tested, with the probes as they were fitted: how much other words to fit would
    change they do not say.  With few words (some hundred or less) that is much, and where nothing is known
    cross-validation lies below one half, of the baselines as of the states: take many words.

    References
    ----------
    The tasks: Edman et al. 2024, arXiv 2409.15452.  The probe is ours.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> ds = ti.lexicon.spelling_probe(model, ti.lexicon.word_tokens(model, 200), [0], letters="aes")
    >>> ds["auc"].dims, bool((ds["last_accuracy"] > ds["last_accuracy_random"]).all())
    (('layer', 'letter'), True)
    """
    ids, text = np.asarray(words.ids, np.int64), list(words.text)
    chosen = choose_layers(layers, model.info)
    wanted = list(dict.fromkeys(letters))
    if len(ids) != len(text) or not len(ids) or not wanted:
        raise ValueError(f"words={short(words)}, letters={letters!r}: give as many tokens as texts, and a letter")
    if wrong := [t for t in text if not t or set(t) - {*LETTERS}]:
        raise ValueError(f"words={short(words)}: {wrong[0]!r} is not of small letters a to z: leave it out")
    group = _groups(text, split)
    many = int(group.max()) + 1
    if many < folds:
        raise ValueError(f"folds={folds}: the {len(ids)} words make {many} groups: give more words, or fewer folds")
    draw = np.random.default_rng(seed)
    fold = (draw.permutation(many) % folds)[group]
    bos = getattr(model.tokenizer, "bos_token_id", None) is not None
    prompts = Prompts.from_ids(ids[:, None], model, bos=bos)
    truth = Truth.of(text, wanted)
    other = truth.of_others(_exchanged(text, draw))
    length = np.array([len(t) for t in text], float)
    plain = np.stack([length, np.log(length), np.log1p(ids), ids / model.info.d_vocab], 1)
    noise = draw.normal(size=(len(ids), model.info.d_model))
    score = partial(_scores, fold=fold, folds=folds, penalty=penalty, group=group)

    def make(walker: Walker) -> xr.Dataset:
        size = max(1, ROOM // (len(ids) * model.info.d_model * 4))
        found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        fixed = {"random": score(noise, truth), "length": score(plain, truth)}
        for a in range(0, len(chosen), size):
            some = chosen[a : a + size]
            states = walker.rows(prompts, resid(some), partial(_last, layers=some))["state"]
            for i in range(len(some)):
                x = states[:, i].astype(np.float64)
                found["state"].append(score(x, truth))
                found["shuffled"].append(score(x, other))
        for kind, one in fixed.items():
            found[kind] = [one] * len(chosen)
        return _labelled(found, truth, wanted, chosen, model, many)

    settings = {"letters": wanted, "split": split, "folds": folds, "penalty": penalty, "layers": chosen, "text": text}
    return walked("spelling_probe", model, prompts, settings, make, seed, **walk)


class Truth(NamedTuple):
    """How words are spelt: (word, letter) bool of those they have, first and last letter, and how many."""

    has: np.ndarray
    first: np.ndarray
    last: np.ndarray
    length: np.ndarray

    @classmethod
    def of(cls, text: Sequence[str], letters: Sequence[str]) -> Truth:
        """Return the truth about words."""
        has = np.array([[c in t for c in letters] for t in text])
        first, last = (np.array([LETTERS.find(t[at]) for t in text]) for at in (0, -1))
        return cls(has, first, last, np.array([len(t) for t in text], float))

    def of_others(self, order: np.ndarray) -> Truth:
        """Return the truth about words in another order."""
        return Truth(self.has[order], self.first[order], self.last[order], self.length[order])


def _groups(text: Sequence[str], split: str | Mapping[str, str]) -> np.ndarray:
    """Return (word,) the number of the group of each word."""
    if isinstance(split, str):
        short_words = {t for t in text if len(t) == 3}
        stems = [t[:3] if t[:3] in short_words else t[:4] for t in text]
        named = stems if split == "stem" else text
    elif lacking := [t for t in text if t not in split]:
        raise ValueError(f"split={short(dict(split))}: it has no lemma of {lacking[0]!r}")
    else:
        named = [split[t] for t in text]
    return np.unique(named, return_inverse=True)[1]


def _exchanged(text: Sequence[str], draw: np.random.Generator) -> np.ndarray:
    """Return a random order of the words in which each stands at the place of one of the same length.

    Words that are spelt alike go to words that are spelt alike, as far as there are.
    """
    known, number = np.unique(text, return_inverse=True)
    size, order = np.array([len(t) for t in known]), np.arange(len(known))
    for n in np.unique(size):
        order[size == n] = draw.permutation(order[size == n])
    place = np.array([np.flatnonzero(number == k)[0] for k in range(len(known))])
    return place[order][number]


def _last(batch: Batch, layers: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return (word, layer, d_model) float32 states of the last token."""
    row = torch.arange(len(batch), dtype=torch.int64, device=batch.device)
    return {"state": torch.stack([batch.resid(n)[row, batch.mask.sum(1) - 1].float() for n in layers], 1)}


def _scores(
    x: np.ndarray, truth: Truth, *, fold: np.ndarray, folds: int, penalty: float, group: np.ndarray
) -> dict[str, Any]:
    """Return how well each fact about words is said of words that no probe was fitted to."""
    ends = [np.eye(len(LETTERS))[e] for e in (truth.first, truth.last)]
    y = np.concatenate([truth.has, *ends, truth.length[:, None]], 1).astype(np.float64)
    said, baseline = predicted(x, y, fold, folds, penalty)
    n, k = truth.has.shape[1], len(LETTERS)
    first, last = said[:, n : n + k].argmax(1), said[:, n + k : n + 2 * k].argmax(1)
    known = np.isfinite(said).all(1)
    rest = np.square(truth.length - said[:, -1])[known].sum()
    whole = np.square(truth.length - baseline[:, -1])[known].sum()
    # Scores of different folds are compared only after each fold's own mean, which knows nothing of the word.
    ranked = said[:, :n] - baseline[:, :n]
    return {
        "auc": _auc(ranked[known], truth.has[known]),
        "matched_auc": _auc(ranked[known], truth.has[known], truth.length[known]),
        "first_accuracy": float((first == truth.first)[known].mean()) if known.any() else np.nan,
        "last_accuracy": float((last == truth.last)[known].mean()) if known.any() else np.nan,
        "length_explained": 1 - rest / whole if whole > 0 else np.nan,
        "intervals": [
            _interval(ranked[known], truth.has[known], group[known], of[known])
            for of in (np.zeros(len(x)), truth.length)
        ],
    }


def _auc(score: np.ndarray, label: np.ndarray, stratum: np.ndarray | None = None) -> np.ndarray:
    """Return (letter,) the share of pairs of one stratum, with and without, that each column has in order, ties half.

    NaN for a letter that few words have, or lack.
    """
    from scipy.stats import rankdata

    total, pairs = np.zeros((2, label.shape[1]))
    for s in np.unique(stratum) if stratum is not None else [None]:
        here = slice(None) if s is None else stratum == s
        some = label[here]
        yes, n = some.sum(0), len(some)
        if n:
            total += np.where(some, rankdata(score[here], axis=0), 0).sum(0) - yes * (yes + 1) / 2
            pairs += yes * (n - yes)
    few = (np.minimum(label.sum(0), len(label) - label.sum(0)) < FEWEST) | (pairs == 0)
    return np.where(few, np.nan, total / np.maximum(pairs, 1))


def _mean(x: np.ndarray) -> float:
    return float(x[np.isfinite(x)].mean()) if np.isfinite(x).any() else float("nan")


def _interval(score: np.ndarray, label: np.ndarray, group: np.ndarray, stratum: np.ndarray) -> np.ndarray:
    """Return (bound,) of the mean area, groups of words left out in turn."""
    known = np.unique(group)
    if len(known) < LEAST:
        return np.full(2, np.nan)
    gone, parts = left_out(len(known)), []
    for some in gone:
        stays = ~np.isin(group, known[some])
        parts.append(_mean(_auc(score[stays], label[stays], stratum[stays])))
    whole = _mean(_auc(score, label, stratum))
    return jackknife_interval(whole, np.array(parts), gone.shape[1], len(known))


def _named(name: str, kind: str) -> str:
    """Return the name of a variable of the probe itself, or of a baseline."""
    return name if kind == "state" else f"{name}_{kind}"


def _labelled(
    found: Mapping[str, list[dict[str, Any]]], truth: Truth, letters: Sequence[str], layers: Sequence[int],
    model: Model, groups: int,
) -> xr.Dataset:  # fmt: skip
    v, data = variable, {}
    common = [np.bincount(e).max() / len(e) for e in (truth.first, truth.last)]
    whole = (None, 1)
    each: dict[str, tuple[str, float, tuple[float | None, float], Sequence[str]]] = {
        "mean_matched_auc": ("mean area over letters, words of one length", 0.5, (0, 1), KINDS),
        "mean_auc": ("mean area over letters", 0.5, (0, 1), KINDS),
        "first_accuracy": ("share of first letters said right", common[0], (0, 1), KINDS),
        "last_accuracy": ("share of last letters said right", common[1], (0, 1), KINDS),
        "length_explained": ("share of the variance of the length explained", 0.0, whole, ("state", "random")),
    }
    for name, (what, chance, ends, kinds) in each.items():
        for kind in kinds:
            mean = name.startswith("mean_")
            values = [_mean(r[name.removeprefix("mean_")]) if mean else r[name] for r in found[kind]]
            data[_named(name, kind)] = v(
                "layer", np.array(values), f"{what}, {SAID[kind]}", "1", EDMAN if kind == "state" else None,
                short=what if kind == "state" else kind, range=ends, chance=float(chance),
                beside=[_named(name, k) for k in kinds[1:]] if kind == "state" else (), along=("layer",),
            )  # fmt: skip
    for n, name in enumerate(("auc", "matched_auc")):
        what = "area under the curve, word with or without the letter" + ", words of one length" * n
        for kind in KINDS:
            data[_named(name, kind)] = v(
                ("layer", "letter"), np.stack([r[name] for r in found[kind]]), f"{what}, {SAID[kind]}", "1",
                short="area", range=(0, 1), chance=0.5, along=("layer",),
            )  # fmt: skip
            data[f"{_named(f'mean_{name}', kind)}_interval"] = v(
                ("bound", "layer"), np.stack([r["intervals"][n] for r in found[kind]], 1),
                f"95% jackknife interval of the mean over {groups} groups of words: {what}, {SAID[kind]}", "1",
            )  # fmt: skip
    data["n_words"] = v("letter", truth.has.sum(0), "words with the letter", "1")
    coords = {
        "letter": v("letter", np.array(letters, object), "letter", "1"), "bound": bound_coord(),
        **layer_coords(layers, model.info),
    }  # fmt: skip
    attrs = {"first": ", ".join(each), "n_groups": groups, "groups": "groups of words", "n_words": len(truth.length),
             "dimensions": "letter"}  # fmt: skip
    return xr.Dataset(data, coords, attrs)
