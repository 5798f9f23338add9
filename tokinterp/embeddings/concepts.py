"""Concepts of one token: directions of its states over many texts, named by what the head makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from ..kernels.pursuit import nonnegative_weights
from ..models.steady import steady
from ..results.dataset import variable
from ..results.stamp import stamped
from ..run.states import states
from ..settings import checked, count, flag, names, none, number, one_of, several, string
from ..text.prompts import Prompts
from ..text.vocabulary import Vocabulary
from .senses import sense_variables, senses_told, tell_senses

if TYPE_CHECKING:
    from ..models.base import Model

COX = "Parekh et al. 2024, A Concept-Based Explainability Framework for Large Multimodal Models, arXiv 2406.08074"
METHODS = ("semi-nmf", "k-means", "pca", "simple", "random", "shuffled")
"""Ways to find directions; "random" and "shuffled" are what the others have to do better than."""
TOP = 50  # tokens that are looked at for words
NEAR = 10  # tokens on either side of a sample, in which the words of a concept are looked for
SAMPLES = 5  # samples that a concept is most active in


class Dictionary(NamedTuple):
    """Directions, and the codes and reconstructions of the states of both parts.

    Attributes
    ----------
    atoms : numpy.ndarray
        (concept, d).
    codes, made : numpy.ndarray
        (sample, concept) and (sample, d), of all samples.
    unfinished : int
        Samples whose codes had not converged when their fit ended.
    """

    atoms: np.ndarray
    codes: np.ndarray
    made: np.ndarray
    unfinished: int = 0


@checked(
    token=count(), layer=count(), position=one_of("at", "predicting"), n_concepts=count(2),
    methods=names(*METHODS, least=1), penalty=number(0), norm=flag, n_words=count(1), held_out=number(0, 0.9),
    senses=several(string, 1) | none,
)  # fmt: skip
@steady
def token_concepts(
    model: Model,
    prompts: Prompts | Sequence[str],
    token: int,
    layer: int,
    *,
    position: str = "at",
    n_concepts: int = 20,
    methods: Sequence[str] = METHODS,
    penalty: float = 1.0,
    norm: bool = True,
    n_words: int = 10,
    held_out: float = 0.2,
    senses: Sequence[str] | None = None,
    seed: int = 0,
    batch_tokens: int | None = None,
) -> xr.Dataset:
    """Take the states of one token in many texts apart into concepts, and name each by the words the head reads in it.

    Parameters
    ----------
    model : Model
        With its tokenizer.
    prompts : Prompts or sequence of str
        Texts; of each the first place of the token counts whose state sees more than itself: what stands at the
        very beginning, or is predicted from there, has the same state in all texts.
    token : int
        Id.
    layer : int
        Of the stream.
    position : {"at", "predicting"}
        The state at the token, or the one before it, which predicts it (as published).
    n_concepts : int
        Directions; 20 as published.
    methods : sequence of str
        Some of `METHODS`. "semi-nmf" is scikit-learn's dictionary learning with codes that are not negative, as
        published; "k-means" has codes 1 / (1 + distance); "pca"; "simple" takes the samples of largest norm.  Controls:
        "random" directions from the mean of the samples, and "shuffled", semi-nmf of states whose channels are
        permuted over samples.
    penalty : float
        Of the codes of semi-nmf, lambda of ||Z - VU||^2 / 2 + lambda ||V||_1.
    norm : bool
        Whether the head reads a direction after the final norm; published is without.
    n_words : int
        Most words of a concept, of the 50 tokens of highest logit.
    held_out : float
        Share of the documents that directions are not fitted to.
    senses : sequence of str, optional
        What the token means in each document, by hand; those with "" take no part.  Two or more different ones.
    seed : int
        Of whatever is drawn.
    batch_tokens : int, optional
        Padded tokens in a batch.

    Returns
    -------
    xarray.Dataset
        By ``dictionary``, the method: ``explained`` and ``explained_held_out``, share of the squared distance to the
        mean of the fitted samples; ``overlap``, mean share of the words of a concept that another has too;
        ``precision``, share of the words of a concept among the tokens within 10 places of the five samples it is most
        active in, and ``precision_null``, of the words of the next concept there; ``n_unfinished``, samples whose codes
        had not converged (give a larger ``penalty``).  With ``concept``: ``grounding``
        (with ``place``), words, and ``top_sample`` (with ``sample_place``), numbers of prompts, -1 beyond the samples
        with a code above 0; ``code`` (sample, concept), ``direction``.  With ``senses``: ``auroc`` (sense), how well a
        single code tells the sense from the others in texts that are held out, that code which does so best in the
        others, and ``auroc_null``, mean of the same for senses permuted over all documents, which is 0.5 by chance;
        ``sense_concept``, that code.

    Raises
    ------
    ValueError
        If fewer texts than concepts have the token, or the vocabulary does not have it; if all states are equal.

    Notes
    -----
    A word is a token of more than two letters that begins with a space, in lower case.  Costs one forward pass.

    References
    ----------
    Parekh et al. 2024, arXiv 2406.08074; github.com/mshukor/xl-vlms.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> texts = [t.text for t in ti.bundled_texts()]
    >>> the = model.tokenizer(" the", add_special_tokens=False)["input_ids"][0]
    >>> some = ("k-means", "random")
    >>> prompts = ti.Prompts.from_texts(texts, model, max_tokens=64, progress=False)
    >>> ds = ti.embeddings.token_concepts(model, prompts, the, 4, n_concepts=2, methods=some)
    >>> bool(ds["explained"].sel(dictionary="k-means") > ds["explained"].sel(dictionary="random"))
    True
    """
    if token >= model.info.d_vocab:
        raise ValueError(f"token={token}: {model.info.id} has ids below {model.info.d_vocab}")
    prompts = prompts if isinstance(prompts, Prompts) else Prompts.from_texts(prompts, model, progress=False)
    where, at = _places(prompts, token, position)
    if len(at) < n_concepts / (1 - held_out):
        raise ValueError(f"token={token} stands in {len(at)} texts: give more, or fewer than {n_concepts} n_concepts")
    found = states(model, prompts, [layer], where, batch_tokens=batch_tokens)
    z = found["state"].values[:, 0].astype(np.float64)
    number_of = found["prompt"].values
    there = np.isfinite(z).all(1)
    z, number_of = z[there], number_of[there]
    told = None if senses is None else senses_told(senses, prompts, number_of)
    if len(z) and np.ptp(z, axis=0).max() <= 1e-6 * np.abs(z).max():
        raise ValueError(f"layer={layer}: the {len(z)} states are all equal there, whatever the text: give a later one")
    document = prompts.documents[number_of]
    order = np.random.default_rng(seed).permutation(np.unique(document))
    own = np.isin(document, order[: len(order) - int(held_out * len(order))])
    fitted, rest = np.flatnonzero(own), np.flatnonzero(~own)
    if len(fitted) < n_concepts:
        raise ValueError(f"n_concepts={n_concepts}: {len(fitted)} states to fit them to: give more texts, or fewer")
    vocabulary = Vocabulary(model.tokenizer, model.info.d_vocab)
    around = _around(prompts, number_of, at, vocabulary)
    rows: dict[str, list[Any]] = {n: [] for n in (
        "explained", "explained_held_out", "overlap", "precision", "precision_null", "words", "top", "codes", "atoms",
        "senses", "unfinished",
    )}  # fmt: skip
    for name in methods:
        made = _fit(name, z, fitted, n_concepts, penalty, seed)
        words = _words(model, vocabulary, made.atoms, norm, n_words)
        top = np.argsort(-made.codes, axis=0, kind="stable")[:SAMPLES].T
        rows["explained"].append(_explained(z, made.made, fitted, fitted))
        rows["explained_held_out"].append(_explained(z, made.made, fitted, rest))
        rows["overlap"].append(overlap(words))
        active = np.take_along_axis(made.codes, top.T, 0).T > 0
        rows["precision"].append(_precision(words, top, active, around))
        rows["precision_null"].append(_precision([*words[1:], words[0]], top, active, around))
        rows["words"].append([[*w, *[""] * (n_words - len(w))] for w in words])
        shown = np.where(active, number_of[top], -1)
        rows["top"].append(np.pad(shown, ((0, 0), (0, SAMPLES - top.shape[1])), constant_values=-1))
        rows["codes"].append(made.codes)
        rows["atoms"].append(made.atoms)
        rows["unfinished"].append(made.unfinished)
        if told is not None:
            rows["senses"].append(tell_senses(made.codes, told, own, seed, document))
    v, each = variable, ("dictionary", "concept")
    data = {
        "explained": v("dictionary", rows["explained"], "share of variance explained", "1", range=(None, 1)),
        "explained_held_out": v("dictionary", rows["explained_held_out"], "share explained of other texts", "1",
                                range=(None, 1)),
        "overlap": v("dictionary", rows["overlap"], "share of words another concept has, too", "1", COX, range=(0, 1)),
        "precision": v("dictionary", rows["precision"], "share of words near the samples", "1", range=(0, 1)),
        "precision_null": v("dictionary", rows["precision_null"], "share of another concept's words there", "1"),
        "n_unfinished": v("dictionary", rows["unfinished"], "samples whose codes had not converged", "1"),
        "grounding": v((*each, "place"), np.array(rows["words"], object), "words of highest logit", "1", COX),
        "top_sample": v((*each, "sample_place"), np.stack(rows["top"]), "prompts it is most active in", "1", COX),
        "code": v(("dictionary", "sample", "concept"), np.stack(rows["codes"]), "activation of the concept", "1", COX),
        "direction": v((*each, "channel"), np.stack(rows["atoms"]), "direction of the concept", "1", COX),
    }  # fmt: skip
    coords = {
        "dictionary": v("dictionary", np.array(list(methods)), "how the directions are found", "1"),
        "concept": v("concept", np.arange(n_concepts), "concept", "1"),
        "place": v("place", np.arange(n_words), "place of the word, highest logit first", "1"),
        "sample_place": v("sample_place", np.arange(SAMPLES), "place of the sample, most active first", "1"),
        "sample": v("sample", np.arange(len(z)), "state", "1"),
        "sample_prompt": v("sample", number_of, "number of its prompt", "1"),
        "fitted": v("sample", own, "whether directions are fitted to it", "1"),
        "channel": v("channel", np.arange(z.shape[1]), "coordinate of the stream", "1"),
    }
    if told is not None:
        data |= sense_variables(rows["senses"])
        coords["sense"] = v("sense", np.array(sorted({*told.tolist()} - {""}), object), "what the token means", "1")
    ds = xr.Dataset(data, coords, {
        "dimensions": "dictionary, concept, place, sample_place, sample",
        "first": "explained_held_out, explained, overlap, precision", "token": token,
        "token_text": vocabulary.strings([token])[0], "layer": layer,
    })  # fmt: skip
    settings = {"token": token, "layer": layer, "position": position, "n_concepts": n_concepts,
                "methods": list(methods), "penalty": penalty, "norm": norm, "n_words": n_words,
                "held_out": held_out, "senses": None if senses is None else list(senses)}  # fmt: skip
    return stamped(ds, "token_concepts", model, prompts.hash, settings, seed)


def overlap(words: Sequence[Sequence[str]]) -> float:
    """Return the mean share of the words of a concept that another one has too; concepts without words are left out.

    Examples
    --------
    >>> overlap([["a", "b"], ["a", "b"]]), overlap([["a"], ["b"]]), overlap([["a", "b"], ["b", "c"], []])
    (1.0, 0.0, 0.25)
    """
    sets = [set(w) for w in words]
    shares = [len(a & b) / len(a) for i, a in enumerate(sets) if a for j, b in enumerate(sets) if i != j]
    return float(np.mean(shares)) if shares else float("nan")


def _places(prompts: Prompts, token: int, position: str) -> tuple[np.ndarray, dict[int, int]]:
    """Return which tokens of the stream have the states, and by prompt the place of the token itself."""
    where, at = np.zeros(prompts.n_tokens, dtype=bool), {}
    for n in range(len(prompts)):
        places = np.flatnonzero(np.asarray(prompts.ids(n)) == token)
        before = int(position == "predicting")
        places = places[places > before]
        if len(places):
            at[n] = int(places[0])
            where[prompts.starts[n] + places[0] - before] = True
    return where, at


def _around(prompts: Prompts, number: np.ndarray, at: dict[int, int], vocabulary: Vocabulary) -> list[set[str]]:
    """Return of each sample the words within some tokens of it."""
    out = []
    for n in number.tolist():
        near = np.asarray(prompts.ids(n))[max(at[n] - NEAR, 0) : at[n] + NEAR + 1]
        out.append({w.strip().lower() for w in vocabulary.strings(near)})
    return out


def _fit(name: str, z: np.ndarray, fitted: np.ndarray, k: int, penalty: float, seed: int) -> Dictionary:
    """Return the directions of a method, fitted to some samples, and the codes of all."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA, DictionaryLearning
    from sklearn.exceptions import ConvergenceWarning

    own, rng = z[fitted], np.random.default_rng(seed)
    if name == "k-means":
        fit = KMeans(k, random_state=seed).fit(own)
        return Dictionary(fit.cluster_centers_, 1 / (1 + fit.transform(z)), fit.cluster_centers_[fit.predict(z)])
    if name == "pca":
        fit = PCA(min(k, *own.shape), svd_solver="full").fit(own)
        codes, wide = fit.transform(z), np.zeros((k, z.shape[1]))
        wide[: codes.shape[1]] = fit.components_
        return Dictionary(wide, np.pad(codes, ((0, 0), (0, k - codes.shape[1]))), fit.inverse_transform(codes))
    if name in ("semi-nmf", "shuffled"):
        given = own if name == "semi-nmf" else np.stack([rng.permutation(c) for c in own.T], 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # on the way: what counts are the codes at the end
            fit = DictionaryLearning(
                k, alpha=penalty,  # pyright: ignore[reportArgumentType]
                max_iter=200, fit_algorithm="cd", transform_algorithm="lasso_cd", positive_code=True,
                transform_alpha=penalty, transform_max_iter=5000, random_state=seed,
            ).fit(given)  # fmt: skip
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", ConvergenceWarning)
            codes = fit.transform(z)
        unfinished = sum(issubclass(w.category, ConvergenceWarning) for w in said)
        return Dictionary(fit.components_, codes, codes @ fit.components_, unfinished)
    atoms = (
        own[np.argsort(-np.linalg.norm(own, axis=1))[:k]] if name == "simple" else rng.standard_normal(own[:k].shape)
    )
    atoms = torch.from_numpy(atoms / np.linalg.norm(atoms, axis=1, keepdims=True))
    middle = own.mean(0) if name == "random" else np.zeros(z.shape[1])  # no random direction would lead to it
    points = torch.from_numpy(z - middle)
    codes = nonnegative_weights((atoms @ atoms.T).expand(len(z), -1, -1), points @ atoms.T)
    return Dictionary(atoms.numpy(), codes.numpy(), (codes @ atoms).numpy() + middle)


def _words(model: Model, vocabulary: Vocabulary, atoms: np.ndarray, norm: bool, most: int) -> list[list[str]]:
    """Return the words that the head reads in each direction."""
    x = torch.from_numpy(atoms).float().to(model.device)
    logits = model.unembed(x) if norm else model.head(x)
    words = []
    for ids in logits.topk(min(TOP, logits.shape[1]), dim=1).indices.cpu().numpy():
        shown = [w.strip().lower() for w in vocabulary.strings(ids) if w.startswith(" ")]
        words.append([w for w in dict.fromkeys(shown) if len(w) > 2 and w.isalpha()][:most])
    return words


def _explained(z: np.ndarray, made: np.ndarray, fitted: np.ndarray, of: np.ndarray) -> float:
    total = ((z[of] - z[fitted].mean(0)) ** 2).sum()
    return float(1 - ((z[of] - made[of]) ** 2).sum() / total) if total else float("nan")


def _precision(
    words: Sequence[Sequence[str]], top: np.ndarray, active: np.ndarray, around: Sequence[set[str]]
) -> float:
    """Return the mean share of a concept's words that stand near a sample it is active in, of concepts with both."""
    near = [[around[i] for i in own[there]] for own, there in zip(top, active, strict=True)]
    shares = [np.mean([w in set().union(*n) for w in own]) for own, n in zip(words, near, strict=True) if own and n]
    return float(np.mean(shares)) if shares else float("nan")
