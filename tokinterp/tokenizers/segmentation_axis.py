"""The axis between two classes of words, and where the same words fall on it when they are cut into other tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ..models.base import Model
from ..models.steady import steady
from ..results.dataset import bound_coord, check, layer_coords, variable
from ..results.stamp import stamped
from ..run.conditions import Condition
from ..run.measurement import choose_layers
from ..run.sites import resid
from ..run.stream import stream
from ..settings import anything, checked, count, names, refuse, several, string
from ..stats.resample import as_columns, mean_interval, mean_sums, ratio, resample
from ..text.prompts import Prompts
from .segmentation import ARNETT, WAYS, segmentations

if TYPE_CHECKING:
    from ..run.batch import Batch


@checked(first=several(string, 3), second=several(string, 3), ways=names(*WAYS, least=1), folds=count(2),
         n_shuffles=count(1), settings=anything)  # fmt: skip
@steady
def class_axis(
    model: Model, first: Sequence[str], second: Sequence[str], ways: Sequence[str] = ("drawn", "characters", "bytes"),
    *, template: str = "The {}", layers: Sequence[int] | None = None, folds: int = 5, n_shuffles: int = 5,
    level: float = 0.95, seed: int = 0, **settings: Any,
) -> xr.Dataset:  # fmt: skip
    """Find the axis between two classes of words, and say where words that are cut otherwise fall on it.

    Parameters
    ----------
    model : Model
        What reads the words.
    first, second : sequence of str
        Words of the two classes, such as singular and plural nouns.  Words of one place in both lists are held out
        together, as a noun and its plural should be.
    ways : sequence of str
        How words are cut, see `segmentations`.
    template : str
        What is read, with ``{}`` at the end for the word.
    layers : sequence of int, optional
        All by default.
    folds : int
        The axis on which a word falls is found without its part of the words.
    n_shuffles : int
        Times that classes are given to words at random, as a control.
    level, seed
        Of the intervals, over words of one place in both lists together; of folds and draws.
    **settings
        Of `segmentations`: ``given``, ``pieces``.

    Returns
    -------
    xarray.Dataset
        On ``condition``, ``label`` and ``layer``: ``position`` of held-out words on the axis, 0 and 1 the means of the
        two classes as the tokenizer cuts them, with ``position_interval``.  On ``condition`` and ``layer``:
        ``accuracy``, the share nearer to the mean of their own class (mean of both classes), with
        ``accuracy_interval``, and ``accuracy_null`` of axes between classes at random.  On ``condition`` and ``label``:
        ``n_words``, those that the condition cuts into other tokens; the others have no part in its numbers.

    Raises
    ------
    ValueError
        For fewer words than folds, a word in both classes, or a template that does not end with the word.

    Notes
    -----
    The axis is that of a linear discriminant analysis (covariance shrunk after Ledoit and Wolf) of the stream at the
    last token of the word.  The published script reads a masked model at its first position.

    References
    ----------
    Arnett et al. 2024, Spanish plural agreement.

    Examples
    --------
    >>> import tokinterp as ti
    >>> one = ["river", "mountain", "city", "king", "dog", "tree"]
    >>> many = ["rivers", "mountains", "cities", "kings", "dogs", "trees"]
    >>> ds = ti.tokenizers.class_axis(ti.load_model(), one, many, ["bytes"], layers=[2], folds=3)
    >>> ds["position"].dims, ds["label"].values.tolist()
    (('condition', 'label', 'layer'), ['first', 'second'])
    """
    if not template.endswith("{}") or template.count("{}") != 1:
        refuse("template", template, "it ends with {}, where the word stands")
    if both := sorted({*first} & {*second}):
        refuse("second", both[0], "the word is in both classes: leave it out of one")
    if min(len(first), len(second)) < folds:
        refuse("folds", folds, f"there are {min(len(first), len(second))} words in a class: give fewer, or more words")
    chosen = choose_layers(layers, model.info)
    words, label = [*first, *second], np.repeat([0, 1], [len(first), len(second)])
    prompts = Prompts.from_texts([template.format(w) for w in words], model, progress=False)
    conditions = segmentations(prompts, ways, words=words, seed=seed, **settings)
    states = []
    for c in conditions.values():
        assert isinstance(c.prompts, Prompts)
        held = np.full((len(chosen), len(words), model.info.d_model), np.nan)
        for numbers, found in stream(model, c.prompts, resid(chosen)).each(lambda b: (b.numbers, _last(b, chosen))):
            held[:, numbers] = found.cpu().numpy()
        states.append(held)
    x = np.stack(states)  # (condition, layer, word, channel)
    lost = ~np.isfinite(x).all((0, 1, 3))
    x, label = x[:, :, ~lost], label[~lost]
    pair = np.concatenate([np.arange(len(first)), np.arange(len(second))])[~lost]
    rng = np.random.default_rng(seed)
    fold = rng.permutation(np.arange(max(len(first), len(second))) % folds)[pair]
    told_of = _cut(conditions, prompts)[:, ~lost]
    place = _positions(x, told_of, label, fold)
    side = _side(place, label)
    null = []
    for _ in range(n_shuffles):
        drawn = rng.permutation(label)
        null.append(_balanced(_side(_positions(x, told_of, drawn, fold), drawn), drawn))
    classes = [label == 0, label == 1]
    bounds = [mean_interval(np.moveaxis(place[..., c], -1, 0), level=level, seed=seed) for c in classes]
    dims, v = ("condition", "layer"), variable
    ds = xr.Dataset(
        {
            "position": v(("condition", "label", "layer"), np.stack([_mean(place[..., c]) for c in classes], 1),
                          "position of held-out words on the axis between the classes", "1", ARNETT,
                          short="position on the axis"),
            "position_interval": v(("bound", "condition", "label", "layer"), np.stack(bounds, 2),
                                   "interval of the position", "1"),
            "accuracy": v(dims, _balanced(side, label), "accuracy of the class of held-out words", "1", ARNETT),
            "accuracy_interval": v(("bound", *dims), _interval(side, label, pair, level, seed),
                                   "interval of the accuracy", "1"),
            "accuracy_null": v(dims, np.mean(null, 0), "accuracy with classes given at random", "1"),
            "n_words": v(("condition", "label"), np.stack([told_of[:, c].sum(1) for c in classes], 1),
                         "words that are cut so", "word"),
        },
        {
            "condition": v("condition", np.array([*conditions]), "how words are cut", "1"),
            "label": v("label", np.array(["first", "second"]), "class of the words", "1"),
            "bound": bound_coord(),
            **layer_coords(chosen, model.info),
        },
        {"first": "position, accuracy"},
    )  # fmt: skip
    told = {"first": first, "second": second, "ways": ways, "template": template, "layers": layers, "folds": folds,
            "n_shuffles": n_shuffles, "level": level, **settings}  # fmt: skip
    ds = stamped(ds, "class_axis", model, prompts.hash, told, seed)
    check(ds)
    return ds


def _last(batch: Batch, layers: Sequence[int]) -> torch.Tensor:
    """Return (layer, prompt, d_model) float64 stream at the last token of each prompt."""
    row = torch.arange(len(batch), dtype=torch.int64, device=batch.device)
    at = batch.mask.sum(1) - 1
    return torch.stack([batch.resid(n)[row, at].double() for n in layers])


def _cut(conditions: Mapping[str, Condition], own: Prompts) -> np.ndarray:
    """Return (condition, word) bool, whether a condition has the word in other tokens; the first one has its own."""
    out = [np.ones(len(own), dtype=bool)]
    for c in list(conditions.values())[1:]:
        assert isinstance(c.prompts, Prompts)
        out.append(np.array([not np.array_equal(c.prompts.ids(i), own.ids(i)) for i in range(len(own))]))
    return np.array(out)


def _positions(x: np.ndarray, told: np.ndarray, label: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return (condition, layer, word) where words fall on the axis of the other folds, 0 and 1 the class means.

    NaN where ``told`` (condition, word) is not, and where the other folds have fewer than two words of a class.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    out = np.full(x.shape[:3], np.nan)
    for k in np.unique(fold):
        away = fold == k
        if np.bincount(label[~away], minlength=2).min() < 2:  # no covariance within a class of one word
            continue
        for n in range(x.shape[1]):
            known = x[0, n, ~away]  # the first condition is the tokenizer's own
            spread = known.std(0) > 1e-9 * (1 + np.abs(known).max())
            if not spread.any():
                continue
            lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(known[:, spread], label[~away])
            axis = lda.coef_[0]
            mean = [float((known[label[~away] == c][:, spread] @ axis).mean()) for c in (0, 1)]
            if mean[0] != mean[1]:
                out[:, n, away] = (x[:, n, away][:, :, spread] @ axis - mean[0]) / (mean[1] - mean[0])
    return np.where(told[:, None], out, np.nan)


def _side(place: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return whether words are nearer to the mean of their own class, NaN where they have no place."""
    return np.where(np.isnan(place), np.nan, (place > 0.5) == (label == 1))


def _mean(x: np.ndarray) -> np.ndarray:
    """Return the mean of what is no NaN along the last axis, NaN where all is."""
    n = (~np.isnan(x)).sum(-1)
    return np.where(n > 0, np.nansum(x, -1) / np.maximum(n, 1), np.nan)


def _balanced(side: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return the share of words (last axis) on their side, the mean of both classes."""
    return np.mean([_mean(side[..., label == c]) for c in (0, 1)], 0)


def _interval(side: np.ndarray, label: np.ndarray, pair: np.ndarray, level: float, seed: int) -> np.ndarray:
    """Return (2, condition, layer) interval of the balanced accuracy, the mean of both classes in each draw.

    A noun and its plural are right or wrong together: whole pairs are drawn.  NaN where a class has fewer than 3 words.
    """
    of_class = [np.moveaxis(np.where(label == c, side, np.nan), -1, 0) for c in (0, 1)]
    sums = [tuple(map(as_columns, mean_sums(own, pair))) for own in of_class]
    have = np.min([(n > 0).sum(0) for _, n in sums], 0)
    found = resample(
        lambda w: np.mean([ratio(w @ right, w @ n) for right, n in sums], 0), len(sums[0][0]), have, level=level,
        n_boot=2000, seed=seed,
    )  # fmt: skip
    return found.reshape(2, *side.shape[:-1])
