"""The topic of a text, read off the state of one token: after how many tokens, and at which layer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..models.steady import steady
from ..results.dataset import bound_coord, layer_coords, variable
from ..results.documents import groups_of_prompts, interval_name
from ..results.stamp import stamped
from ..run.states import states
from ..settings import checked, count, level, positive, several, string
from ..stats.resample import mean_interval
from ..text.prompts import Prompts

if TYPE_CHECKING:
    from ..models.base import Model

FTP = "Walker 2024, Future token prediction, arXiv 2410.18160"
PERMUTED = 3  # draws of labels without text


@checked(labels=several(string, 1), positions=several(count(), 1, ascending=True), folds=count(2), ridge=positive,
         level=level)  # fmt: skip
@steady
def topic_probe(
    model: Model,
    prompts: Prompts | Sequence[str],
    labels: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] = (1, 4, 16),
    folds: int = 5,
    ridge: float = 0.1,
    level: float = 0.95,
    seed: int = 0,
    batch_tokens: int | None = None,
) -> xr.Dataset:
    """Read the label of a text from the state of a single token, by layer and position.

    Parameters
    ----------
    model, prompts
        What to run, and on what.
    labels : sequence of str
        One for each document: topics, languages; those with "" take no part.
    layers : sequence of int, optional
        All by default.
    positions : sequence of int
        Places in the prompt, BOS counted, ascending; prompts without the last of them take no part, so that all
        positions are those of the same texts.
    folds : int
        Parts of the documents; a probe is fitted on the others and scored on one.
    ridge : float
        Penalty on the squared weights of a logistic regression on standardised states, for each row.
    level : float
        Of the intervals, over documents.
    seed : int
        Of the folds and of the permuted labels.
    batch_tokens : int, optional
        Padded tokens in a batch.

    Returns
    -------
    xarray.Dataset
        ``accuracy`` (layer, position) on documents that are held out, and ``accuracy_interval``; beside it
        ``accuracy_shuffled``, mean of three probes of labels permuted over documents, and ``accuracy_frequent``, of the
        most frequent label of the others.  Layer 0 is the embedding of the token, and says what the topic is known from
        the token alone.  ``n_prompts`` with all positions.

    Raises
    ------
    ValueError
        If there is not one label for each document, fewer documents with all positions than folds, or a single label.

    Notes
    -----
    One forward pass.  The same features come from `tokinterp.sklearn.TokenRepresentations` with ``pooling="tokens"``,
    for any other classifier of scikit-learn.

    References
    ----------
    Walker 2024, arXiv 2410.18160.

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = ti.bundled_texts("story")[:6] + ti.bundled_texts("article")[:6]
    >>> kinds = [t.kind for t in texts]
    >>> first = [t.text[:200] for t in texts]
    >>> ds = topic_probe(ti.load_model(), first, kinds, layers=[0, 4], positions=[8], folds=3)
    >>> ds["accuracy"].dims
    ('layer', 'position')
    """
    prompts = prompts if isinstance(prompts, Prompts) else Prompts.from_texts(prompts, model, progress=False)
    documents = int(prompts.documents.max()) + 1
    if len(labels) != documents:
        raise ValueError(f"labels: {len(labels)} of them: give one for each of {documents} documents")
    lengths = np.asarray(prompts.lengths)
    where = np.zeros(prompts.n_tokens, dtype=bool)
    given = np.array(list(labels))
    long = np.flatnonzero((lengths > max(positions)) & (given[prompts.documents] != ""))
    where[(prompts.starts[:-1][long, None] + np.array(list(positions))).ravel()] = True
    document, groups = groups_of_prompts(prompts, long)
    if len(np.unique(document)) < folds:
        raise ValueError(f"folds={folds}: {len(np.unique(document))} documents have more than {max(positions)} tokens: "
                         "give longer texts, or smaller positions")  # fmt: skip
    found = states(model, prompts, layers, where, batch_tokens=batch_tokens)
    x = found["state"].values.reshape(len(long), len(positions), found.sizes["layer"], -1)
    kept = np.isfinite(x).all((1, 2, 3))
    x, document = x[kept].astype(np.float64), document[kept]
    classes, answer = np.unique(given[document], return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"labels: {classes.tolist()} of the texts that are long enough: give two or more")
    rng = np.random.default_rng(seed)
    own, place = np.unique(document, return_inverse=True)
    fold = rng.permutation(np.arange(len(own)) % folds)[place]
    of_document = np.zeros(len(own), int)
    of_document[place] = answer
    permuted = [rng.permutation(of_document)[place] for _ in range(PERMUTED)]
    right = np.empty((len(x), found.sizes["layer"], len(positions)))
    shuffled = np.empty((found.sizes["layer"], len(positions)))
    for n in range(right.shape[1]):
        for p in range(len(positions)):
            right[:, n, p] = _held_out(x[:, p, n], answer, fold, folds, ridge) == answer
            shuffled[n, p] = np.mean([(_held_out(x[:, p, n], q, fold, folds, ridge) == q).mean() for q in permuted])
    frequent = np.array([np.bincount(answer[fold != f]).argmax() for f in range(folds)])[fold]
    v, what = variable, "accuracy of the label of a text"
    n_own = len(own)
    data: dict[str, Any] = {
        "accuracy": v(("layer", "position"), right.mean(0), what, "1", FTP, short="accuracy of the topic", range=(0, 1),
                      chance="accuracy_frequent", beside=["accuracy_shuffled"]),
        "accuracy_interval": v(("bound", "layer", "position"), mean_interval(right, document, level=level, seed=seed),
                               interval_name(what, level, groups, n_own), "1"),
        "accuracy_shuffled": v(("layer", "position"), shuffled, "accuracy of permuted labels", "1",
                               short="permuted labels", range=(0, 1)),
        "accuracy_frequent": v((), float((frequent == answer).mean()), "accuracy of the most frequent label", "1"),
        "n_prompts": v((), len(x), "prompts with all positions", "1"),
    }  # fmt: skip
    coords = {
        "position": v("position", np.array(list(positions)), "place in the prompt, BOS counted", "token"),
        "bound": bound_coord(), **layer_coords(found["layer"].values.tolist(), model.info),
    }  # fmt: skip
    attrs = {"first": "accuracy", "n_groups": n_own, "groups": groups, "labels": ", ".join(classes.tolist())}
    settings = {"labels": list(labels), "layers": found["layer"].values.tolist(), "positions": list(positions),
                "folds": folds, "ridge": ridge, "level": level}  # fmt: skip
    return stamped(xr.Dataset(data, coords, attrs), "topic_probe", model, prompts, settings, seed)


def _held_out(x: np.ndarray, y: np.ndarray, fold: np.ndarray, folds: int, ridge: float) -> np.ndarray:
    """Return (row,) the class that the probe of the other folds says."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    out = np.empty(len(x), int)
    for f in range(folds):
        train, test = fold != f, fold == f
        if not test.any():
            continue
        if len(np.unique(y[train])) < 2:
            out[test] = y[train][0]
            continue
        probe = LogisticRegression(C=1 / (ridge * train.sum()), max_iter=2000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the penalty is what bounds it
            out[test] = make_pipeline(StandardScaler(), probe).fit(x[train], y[train]).predict(x[test])
    return out
