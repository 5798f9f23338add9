"""Sparse features of tokens, and which of them say what label a text or a token has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from ..models.steady import steady
from ..results.dataset import bound_coord, variable
from ..results.documents import groups_of_prompts, interval_name
from ..results.stamp import stamped
from ..run.measurement import choose_layers
from ..run.sites import resid
from ..run.stream import stream
from ..settings import checked, count, level, names, number, positive, several, string
from ..stats.resample import group_sums, mean_interval
from ..text.prompts import Prompts
from .senses import area_of

if TYPE_CHECKING:
    from ..models.base import Model

DILA = "Wu et al. 2024, DILA: dictionary label attention, arXiv 2409.10504"
SHARKEY = "Sharkey et al. 2022, Taking features out of superposition with sparse autoencoders"
DICTIONARIES = ("learned", "random", "shuffled")
"""Sparse dictionaries: the autoencoder, and the two that it has to do better than."""
TOP = 10  # tokens that a feature is shown and judged by
BATCH, RATE = 1024, 1e-2
INTERCEPT = 100  # liblinear penalises the intercept, too: by a hundredth of the penalty of a weight
PERMUTED = 10  # draws of labels without text


class Autoencoder(NamedTuple):
    """A ReLU encoder and a linear decoder with rows of length 1, of states about their mean.

    Attributes
    ----------
    middle, scale : torch.Tensor
        (d,) and () float32: states are (x - middle) / scale, of mean square length 1.
    encoder, bias : torch.Tensor
        (d, feature) and (feature,).
    decoder, offset : torch.Tensor
        (feature, d) and (d,).
    """

    middle: torch.Tensor
    scale: torch.Tensor
    encoder: torch.Tensor
    bias: torch.Tensor
    decoder: torch.Tensor
    offset: torch.Tensor

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """Return (row, feature) how active each feature is in some states, 0 or more."""
        return ((x - self.middle) / self.scale @ self.encoder + self.bias).relu()

    def made(self, codes: torch.Tensor) -> torch.Tensor:
        """Return (row, d) the states that codes stand for."""
        return (codes @ self.decoder + self.offset) * self.scale + self.middle


@checked(
    labels=several(string, 1), layer=count(), n_features=count(2), dictionaries=names(*DICTIONARIES, least=1),
    penalty=number(0), strength=positive, steps=count(1), held_out=number(above=0, below=1), level=level,
)  # fmt: skip
@steady
def token_features(
    model: Model,
    prompts: Prompts | Sequence[str],
    labels: Sequence[str],
    layer: int,
    *,
    n_features: int = 128,
    dictionaries: Sequence[str] = DICTIONARIES,
    penalty: float = 0.1,
    strength: float = 1.0,
    steps: int = 1000,
    held_out: float = 0.3,
    level: float = 0.95,
    seed: int = 0,
    batch_tokens: int | None = None,
) -> xr.Dataset:
    """Write the states of tokens as few active features, and say by features which label a text or a token has.

    A sparse autoencoder is fitted to the states of all tokens but special and massive ones, whose few states would be
    nearly all of the variance; a matrix of label by feature, most of it zero, is then fitted to the mean codes of the
    texts, or to the codes of the tokens.

    Parameters
    ----------
    model : Model
        From `load_model` or `wrap`.
    prompts : Prompts or sequence of str
        Texts.
    labels : sequence of str
        One for each document (a topic, a language), or one for each token of all prompts (a part of speech, a class);
        what has the label "" takes no part in fit and scores.
    layer : int
        Of the stream.
    n_features : int
        Features of a dictionary.
    dictionaries : sequence of str
        "learned", the autoencoder.  Controls: "random", the same fit with a decoder that stays at its random start, and
        "shuffled", fitted to states whose channels are permuted over tokens, each for itself.
    penalty : float
        On the sum of the codes of a token, where states have a mean square length of 1.
    strength : float
        Of the fit to the labels: C of scikit-learn's logistic regression with an absolute penalty, one label against
        the others.
    steps : int
        Of Adam, each of 1,024 tokens.
    held_out : float
        Share of the documents (or prompts, if none is in several) that nothing is fitted to.
    level : float
        Of the interval.
    seed : int
        Of whatever is drawn.
    batch_tokens : int, optional
        Padded tokens in a batch.

    Returns
    -------
    xarray.Dataset
        By ``dictionary``, of what is held out: ``explained``, share of the variance of the states that the codes write;
        ``n_active``, mean number of active features of a token; ``share_dead``, features that are never active;
        ``accuracy`` of the labels with ``accuracy_interval``, beside ``accuracy_shuffled``, mean of ten fits to labels
        permuted over documents (of tokens: over tokens), ``accuracy_frequent``, of the most frequent label, and
        ``accuracy_states``, of the states themselves in place of the codes.  By ``feature``: ``density``, share of the
        tokens in which it is active; ``identifiability``, largest cosine of its direction with one of the same fit from
        another seed, and ``identifiability_null``, with one of as many random directions; ``purity``, share of the
        most frequent type among the ten tokens (as many places) it is most active in, NaN if it is active in fewer, and
        ``purity_null`` among ten random ones; ``top_token`` and ``top_code``, those tokens, "" where it is not active.
        ``weight`` (label, feature), ``n_weights``, features that a label uses, and ``auroc`` of its scores.

    Raises
    ------
    ValueError
        If there is not one label for each document or token, or fewer than two different ones on either side of the
        split.

    Notes
    -----
    Costs one forward pass, and two fits for each dictionary.  Not taken over from the paper: its attention over the
    tokens of a text (here their mean), and the naming of features by a language model; "identifiability" there is
    judged by people, here it is whether the fit finds the direction again, which says that it is one of the states and
    not of the draw.

    References
    ----------
    Wu et al. 2024, arXiv 2409.10504; Sharkey et al. 2022 (cosine with the directions of another fit).

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> texts = ti.bundled_texts("story")[:8] + ti.bundled_texts("article")[:8]
    >>> prompts = ti.Prompts.from_texts([t.text for t in texts], model, max_tokens=32, progress=False)
    >>> ds = ti.embeddings.token_features(model, prompts, [t.kind for t in texts], 3, n_features=16, steps=20)
    >>> ds["weight"].dims
    ('dictionary', 'label', 'feature')
    """
    prompts = prompts if isinstance(prompts, Prompts) else Prompts.from_texts(prompts, model, progress=False)
    label, of_tokens = _labels(labels, prompts)
    x, place = _states(model, prompts, choose_layers([layer], model.info)[0], batch_tokens)
    label, ids = label[place], prompts.token_ids[place]
    text = np.array([s for n in range(len(prompts)) for s in prompts.strings(n)], object)[place]
    group, groups = groups_of_prompts(prompts, np.searchsorted(prompts.starts, place, side="right") - 1)
    rng = np.random.default_rng(seed)
    fitted = _split(group, held_out, rng)
    unit = np.arange(len(x)) if of_tokens else np.unique(group, return_inverse=True)[1]
    _, first, size = np.unique(unit, return_index=True, return_counts=True)
    size = size[:, None]
    target, own, test_group = label[first], fitted[first], group[first]
    used = target != ""
    sides = [sorted(set(target[used & s].tolist())) for s in (own, ~own)]
    if min(map(len, sides)) < 2:
        raise ValueError(f"labels: {sides[0]} of what is fitted, {sides[1]} of what is held out: give more texts, of "
                         "two labels or more on either side")  # fmt: skip
    classes = sides[0]
    answers = np.array([classes.index(t) if t in classes else -1 for t in target.tolist()])
    scored = ~own & used
    permuted = [_permuted(answers, own & used, rng) for _ in range(PERMUTED)]
    points = torch.from_numpy(x).to(model.device)
    fit_to = points[torch.from_numpy(fitted).to(model.device)]
    tested = torch.from_numpy(~fitted).to(model.device)
    rest = np.flatnonzero(~fitted)
    some = np.stack([rng.permutation(rest)[:TOP] for _ in range(n_features)])
    rows: dict[str, list[Any]] = {}
    for name in dictionaries:
        one, two = (_fit(name, fit_to, n_features, penalty, steps, s) for s in (seed, seed + 1))
        codes = one.codes(points)
        table = codes.double().cpu().numpy()
        mean = group_sums(table, unit) / size
        fit = _read_labels(mean, answers, own & used, strength, seed)
        right = fit.best == answers
        active = table[~fitted] > 0
        at = rest[np.argsort(-table[~fitted], axis=0, kind="stable")[:TOP].T]
        code = np.take_along_axis(table, at.T, 0).T
        noise = torch.from_numpy(np.random.default_rng(seed + 2).standard_normal(two.decoder.shape)).to(two.decoder)
        values = {
            "explained": _explained(points[tested], one.made(codes[tested]), one.middle),
            "n_active": active.sum(1).mean(), "share_dead": (~active.any(0)).mean(),
            "accuracy": right[scored].mean(),
            "accuracy_interval": mean_interval(right[scored].astype(float), test_group[scored], level=level, seed=seed),
            "accuracy_shuffled": np.mean([
                (_read_labels(mean, p, own & used, strength, seed).best == answers)[scored].mean() for p in permuted
            ]),
            "density": active.mean(0), "identifiability": _nearest(one.decoder, two.decoder),
            "identifiability_null": _nearest(noise, two.decoder),
            "purity": np.where(code[:, -1] > 0, _purity(ids[at]), np.nan),
            "top_token": np.where(code > 0, text[at], ""), "top_code": code,
            "weight": fit.weight, "n_weights": (fit.weight != 0).sum(1),
            "auroc": [area_of(fit.score[scored][:, [n]], answers[scored] == n)[0] for n in range(len(classes))],
        }  # fmt: skip
        for k, value in values.items():
            rows.setdefault(k, []).append(value)
    common = np.bincount(answers[own & used]).argmax()
    dense = _read_labels(group_sums(x, unit) / size, answers, own & used, strength, seed)
    ds = _labelled(rows, dictionaries, classes, int(scored.sum()), interval_name(
        "accuracy", level, groups, len(np.unique(test_group[scored]))))  # fmt: skip
    v, alone = variable, float((dense.best == answers)[scored].mean())
    frequent = float((answers[scored] == common).mean())
    ds["accuracy_frequent"] = v((), frequent, "accuracy of the most frequent label", "1", range=(0, 1))
    ds["accuracy_states"] = v((), alone, "accuracy from the states themselves", "1", range=(0, 1))
    ds["purity_null"] = v((), float(_purity(ids[some]).mean()), "share of the most frequent of ten random tokens", "1")
    settings = {"labels": list(labels), "layer": layer, "n_features": n_features, "dictionaries": list(dictionaries),
                "penalty": penalty, "strength": strength, "steps": steps, "held_out": held_out,
                "level": level}  # fmt: skip
    return stamped(ds.assign_attrs(layer=layer), "token_features", model, prompts.hash, settings, seed)


def _labelled(
    rows: dict[str, list[Any]], dictionaries: Sequence[str], classes: Sequence[str], n: int, interval: str
) -> xr.Dataset:
    v, each, by = variable, ("dictionary", "feature"), "dictionary"
    interval_values = np.stack(rows["accuracy_interval"], 1)
    data = {
        "explained": v(by, rows["explained"], "share of the variance of the states", "1", range=(None, 1)),
        "n_active": v(by, rows["n_active"], "active features of a token", "1", DILA, range=(0, None)),
        "share_dead": v(by, rows["share_dead"], "share of features that are never active", "1"),
        "accuracy": v(by, rows["accuracy"], "accuracy of the labels", "1", DILA, range=(0, 1),
                      chance="accuracy_frequent", beside=["accuracy_shuffled"]),
        "accuracy_interval": v(("bound", by), interval_values, interval, "1"),
        "accuracy_shuffled": v(by, rows["accuracy_shuffled"], "accuracy of fits to permuted labels", "1",
                               short="permuted labels", range=(0, 1)),
        "density": v(each, np.stack(rows["density"]), "share of the tokens it is active in", "1"),
        "identifiability": v(each, np.stack(rows["identifiability"]), "largest cosine with a direction of another fit",
                             "1", SHARKEY, short="found again", range=(-1, 1), beside=["identifiability_null"]),
        "identifiability_null": v(each, np.stack(rows["identifiability_null"]),
                                  "largest cosine of a random direction with one of another fit", "1",
                                  short="random direction", range=(-1, 1)),
        "purity": v(each, np.stack(rows["purity"]), "share of the most frequent type among its ten tokens", "1",
                    chance="purity_null"),
        "top_token": v((*each, "place"), np.stack(rows["top_token"]), "tokens it is most active in", "1", DILA),
        "top_code": v((*each, "place"), np.stack(rows["top_code"]), "how active it is in them", "1", range=(0, None)),
        "weight": v((by, "label", "feature"), np.stack(rows["weight"]), "weight of the feature for the label", "1",
                    DILA),
        "n_weights": v((by, "label"), np.stack(rows["n_weights"]), "features that the label uses", "1", DILA),
        "auroc": v((by, "label"), np.stack(rows["auroc"]), "AUROC of the scores of the label", "1", range=(0, 1),
                   chance=0.5),
    }  # fmt: skip
    m, places = data["top_token"].shape[1:]
    coords = {
        by: v(by, np.array(list(dictionaries)), "how the features are found", "1"),
        "feature": v("feature", np.arange(m), "feature", "1"),
        "label": v("label", np.array(classes, object), "label", "1"),
        "place": v("place", np.arange(places), "place of the token, most active first", "1"),
        "bound": bound_coord(),
    }
    attrs = {"dimensions": "dictionary, label, feature, place", "n_held_out": n,
             "first": "accuracy, explained, n_active, identifiability, auroc"}  # fmt: skip
    return xr.Dataset(data, coords, attrs)


def _states(model: Model, prompts: Prompts, layer: int, batch_tokens: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (row, d) float32 states of the tokens that take part, and (row,) their places in the stream."""
    x, places = [], []
    for batch in stream(model, prompts, resid([layer]), batch_tokens=batch_tokens):
        here = batch.flatten(batch.kept(("special", "massive"), layer)).nonzero()[:, 0]
        x.append(batch.rows(layer)[here].float().cpu().numpy())
        places.append(batch.tokens.place[here.cpu().numpy()])
    order = np.argsort(np.concatenate(places))
    return np.concatenate(x)[order], np.concatenate(places)[order]


def _labels(labels: Sequence[str], prompts: Prompts) -> tuple[np.ndarray, bool]:
    """Return (token,) the label of each token, and whether tokens have labels of their own."""
    given, n = np.array(labels, dtype=object), int(prompts.documents.max()) + 1
    if len(given) not in (n, prompts.n_tokens):
        raise ValueError(f"labels: {len(given)} of them: give one for each of {n} documents, or of {prompts.n_tokens} "
                         "tokens")  # fmt: skip
    if len(given) != n:
        return given, True
    return given[np.repeat(prompts.documents, prompts.lengths)], False


def _split(group: np.ndarray, held_out: float, rng: np.random.Generator) -> np.ndarray:
    """Return (row,) bool, true on the rows of the groups that are fitted to."""
    found = np.unique(group)
    left = rng.permutation(found)[: max(1, round(held_out * len(found)))]
    return ~np.isin(group, left)


def _permuted(answers: np.ndarray, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the labels with those of the fit in another order."""
    out = answers.copy()
    out[which] = rng.permutation(answers[which])
    return out


def _fit(name: str, x: torch.Tensor, m: int, penalty: float, steps: int, seed: int) -> Autoencoder:
    """Return the autoencoder of some states, from a start and in an order that only the seed decides."""
    draw = torch.Generator(device="cpu").manual_seed(seed)
    middle = x.double().mean(0).float()
    scale = (x - middle).double().square().sum(1).mean().sqrt().clamp(min=1e-30).float()
    given = (x - middle) / scale
    if name == "shuffled":
        order = torch.rand(*given.shape, generator=draw, dtype=torch.float32, device="cpu").argsort(0)
        given = given.gather(0, order.to(x.device))
    start = torch.randn(m, x.shape[1], generator=draw, dtype=torch.float32, device="cpu")
    decoder = (start / start.norm(dim=1, keepdim=True)).to(x.device)
    encoder, bias = decoder.T.clone(), torch.zeros(m, dtype=torch.float32, device=x.device)
    offset = torch.zeros(x.shape[1], dtype=torch.float32, device=x.device)
    learned = [encoder, bias, offset, *([] if name == "random" else [decoder])]
    for p in learned:
        p.requires_grad_(True)
    adam = torch.optim.Adam(learned, lr=RATE)
    with torch.enable_grad():
        for _ in range(steps):
            take = torch.randint(len(given), (min(BATCH, len(given)),), generator=draw, dtype=torch.int64, device="cpu")
            batch = given[take.to(x.device)]
            codes = (batch @ encoder + bias).relu()
            loss = (batch - codes @ decoder - offset).square().sum(1).mean() + penalty * codes.sum(1).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                decoder /= decoder.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return Autoencoder(middle, scale, *(p.detach() for p in (encoder, bias, decoder, offset)))


def _explained(x: torch.Tensor, made: torch.Tensor, middle: torch.Tensor) -> float:
    total = (x - middle).double().square().sum()
    return float(1 - (x - made).double().square().sum() / total) if total else float("nan")


def _nearest(one: torch.Tensor, other: torch.Tensor) -> np.ndarray:
    """Return (direction,) the largest cosine with another set of directions."""
    a, b = (d.double() / d.double().norm(dim=1, keepdim=True).clamp(min=1e-30) for d in (one, other))
    return (a @ b.T).amax(1).cpu().numpy()


def _purity(ids: np.ndarray) -> np.ndarray:
    """Return of each row of ids the share of the most frequent one."""
    return np.array([np.unique(row, return_counts=True)[1].max() / len(row) for row in ids])


class Reading(NamedTuple):
    """Labels read off codes.

    Attributes
    ----------
    weight, score : numpy.ndarray
        (label, feature) and (unit, label).
    best : numpy.ndarray
        (unit,) number of the label of highest score.
    """

    weight: np.ndarray
    score: np.ndarray
    best: np.ndarray


def _read_labels(codes: np.ndarray, answers: np.ndarray, which: np.ndarray, strength: float, seed: int) -> Reading:
    """Return one logistic regression with an absolute penalty for each label, fitted to some of the units.

    Codes are taken about their mean there, so that where they lie is nothing that weights have to make up for.
    """
    from sklearn.linear_model import LogisticRegression

    scale = codes[which].std(0)
    scaled = (codes - codes[which].mean(0)) / np.where(scale > 0, scale, 1)
    weights, scores = [], []
    for label in range(answers.max() + 1):
        fit = LogisticRegression(l1_ratio=1, C=strength, solver="liblinear", max_iter=5000, random_state=seed,
                                 intercept_scaling=INTERCEPT)  # fmt: skip
        fit.fit(scaled[which], answers[which] == label)
        weights.append(fit.coef_[0])
        scores.append(fit.decision_function(scaled))
    score = np.stack(scores, 1)
    return Reading(np.stack(weights), score, score.argmax(1))
