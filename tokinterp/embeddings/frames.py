"""Words and concepts as frames: the whitened rows of the head for their tokens, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import xarray as xr

from ..models.embeddings import embeddings
from ..models.steady import steady
from ..results.dataset import variable
from ..results.stamp import stamped
from ..settings import array, checked, count, flag, mapping, some_strings
from ..text.vocabulary import Vocabulary
from ..tokenizers.reachability import encode

if TYPE_CHECKING:
    from ..models.base import Model

FRAMES = "Frame Representation Hypothesis, github.com/phvv-me/frame-representation-hypothesis"
FLOOR = 1e-6  # eigenvalues of the covariance that are dropped
TOGETHER = 4096  # frames at once


class Whitened(NamedTuple):
    """Rows of the head after whitening.

    Attributes
    ----------
    rows : torch.Tensor
        (vocab, d) float64, on the model's device.
    rank : int
        Directions that are kept.
    axes : torch.Tensor
        (d, rank) float64, orthonormal, those directions.
    """

    rows: torch.Tensor
    rank: int
    axes: torch.Tensor


@checked(trained=array)
@steady
def whitened_unembedding(model: Model, *, trained: np.ndarray | None = None) -> Whitened:
    """Return the rows of the head with zero mean and unit covariance, in which the inner product is the causal one.

    Parameters
    ----------
    model : Model
        From `load_model` or `wrap`.
    trained : numpy.ndarray, optional
        (vocab,) bool, which rows mean and covariance are of, such as ``trained`` of `repeat_tokens`; all by default.

    Returns
    -------
    Whitened
        ``rows`` (vocab, d): W S^(-1/2) without its mean, S the unbiased covariance of the rows, eigenvalues up to 1e-6
        dropped; the row of the padding token is zero.

    Raises
    ------
    ValueError
        If ``trained`` is not one bool for each id, or fewer than two, or no direction is kept.

    References
    ----------
    Park et al. 2024, arXiv 2311.03658 (causal inner product); github.com/phvv-me/frame-representation-hypothesis.

    Examples
    --------
    >>> import tokinterp as ti
    >>> found = ti.embeddings.whitened_unembedding(ti.load_model())
    >>> found.rank, tuple(found.rows.shape)
    (192, (4096, 192))
    """
    w = embeddings(model, ["output"])["output"].double()
    use = torch.ones(len(w), dtype=torch.bool, device=w.device)
    if trained is not None:
        given = np.asarray(trained)
        if given.dtype != bool or given.shape != (len(w),) or given.sum() < 2:
            raise ValueError(f"trained: {given.dtype} of shape {given.shape}: give {len(w)} bools, two or more true")
        use = torch.from_numpy(given).to(w.device)
    values, axes = torch.linalg.eigh(torch.cov(w[use].T, correction=1))
    kept = values > FLOOR
    if not bool(kept.any()):
        raise ValueError(
            f"model={model.info.id}: the rows of its head vary by less than {FLOOR:g} in every direction (their "
            f"largest variance is {float(values[-1]):.2g}), and nothing is left to whiten"
        )
    values, axes = values[kept], axes[:, kept]
    rows = (w - w[use].mean(0)) @ (axes / values.sqrt()) @ axes.T
    padding = getattr(model.tokenizer, "pad_token_id", None)
    if padding is not None and int(padding) < len(rows):
        rows[int(padding)] = 0
    return Whitened(rows, len(values), axes)


@checked(concepts=mapping(some_strings, 2), max_tokens=count(1), leave_out=flag, trained=array)
@steady
def word_frames(
    model: Model,
    concepts: Mapping[str, Sequence[str]],
    *,
    max_tokens: int = 16,
    leave_out: bool = True,
    trained: np.ndarray | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Compare words with the concepts they belong to, both as frames of whitened rows of the head.

    The frame of a word has the row of each of its tokens as a column.  The frame of a concept is the orthonormal frame
    nearest to the sum of those of its words.

    Parameters
    ----------
    model : Model
        With its tokenizer.
    concepts : mapping of str to sequence of str
        Words of each concept, such as the lemmas of a synset of WordNet, as they are to be tokenised (with the space
        before them).
    max_tokens : int
        Longer words are left out (16 as published; 3 for concepts there).
    leave_out : bool
        Compare each word with the concept of the others alone; otherwise it takes part itself, as published, and is
        near to a concept of one or two words by construction.
    trained : numpy.ndarray, optional
        See `whitened_unembedding`.
    seed : int
        Of the controls.

    Returns
    -------
    xarray.Dataset
        On ``word``: ``n_tokens``, ``n_distinct``, ``relative_rank``, rank of the frame by its columns that are not
        zero; ``orthogonality``, mean absolute cosine of its columns (NaN for one); with the concept's frame the
        ``projection`` tr(F'C) / sqrt(k_F k_C), k columns that are not zero (the paper's correlation, which is no
        correlation: it grows with the length of the rows), and the ``cosine`` tr(F'C) / (|F| |C|).  Controls of both:
        ``_other``, a word of another concept, as long where there is one, and ``_random``, columns in random directions
        of those that are kept, with the norms of the word's.  NaN where a concept has no other word.

    Raises
    ------
    ValueError
        If there are fewer than two concepts, or no word is short enough.

    Notes
    -----
    The frame of a concept has as many columns as its longest word, so that no direction is arbitrary.  Costs no pass.

    References
    ----------
    github.com/phvv-me/frame-representation-hypothesis.

    Examples
    --------
    >>> import tokinterp as ti
    >>> words = {"instrument": [" telescope", " microscope", " periscope"], "water": [" river", " sea", " lake"]}
    >>> ds = ti.embeddings.word_frames(ti.load_model(), words)
    >>> ds["relative_rank"].values.tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    if model.tokenizer is None:
        raise ValueError(f"model={model.info.id} has no tokenizer: wrap it with one")
    words = [(n, w) for n, own in enumerate(concepts.values()) for w in dict.fromkeys(own)]
    ids = encode(model.tokenizer, [w for _, w in words])
    fits = [n for n, row in enumerate(ids) if 0 < len(row) <= max_tokens]
    if not fits:
        raise ValueError(f"max_tokens={max_tokens}: no word is as short: give more, or other words")
    words, ids = [words[n] for n in fits], [ids[n] for n in fits]
    if len({n for n, _ in words}) < 2:
        raise ValueError(f"concepts: only one has words of at most {max_tokens} tokens, and nothing to compare it with")
    whitened = whitened_unembedding(model, trained=trained)
    rows = whitened.rows
    concept = np.array([n for n, _ in words])
    length = np.array([len(row) for row in ids])
    frames = torch.zeros(len(ids), length.max(), rows.shape[1], dtype=torch.float64, device=rows.device)
    for n, row in enumerate(ids):
        frames[n, : len(row)] = rows[row]
    own = _concept_frames(frames, concept, length, leave_out)
    rng = np.random.default_rng(seed)
    others = frames[_other_words(concept, length, rng)]
    noise = torch.from_numpy(rng.standard_normal((*frames.shape[:2], whitened.rank))).to(frames.device)
    noise = noise @ whitened.axes.T
    random = noise * (frames.norm(dim=2) / noise.norm(dim=2))[..., None]
    v = variable
    data: dict[str, xr.Variable] = {}
    for end, f, said, short in (
        ("", frames, "the word", ""), ("_other", others, "a word of another concept", "other word"),
        ("_random", random, "random columns of the same norms", "random columns"),
    ):  # fmt: skip
        projection, cosine = compare_frames(f, own)
        beside = [] if end else ["_other", "_random"]
        data[f"projection{end}"] = v(
            "word", projection, f"tr(F'C) / sqrt(k k) of {said} and the concept", "1", FRAMES,
            short=short or "projection", beside=[f"projection{b}" for b in beside],
        )  # fmt: skip
        data[f"cosine{end}"] = v(
            "word", cosine, f"cosine of {said} and the concept, as frames", "1", range=(-1, 1),
            short=short or "cosine", beside=[f"cosine{b}" for b in beside],
        )  # fmt: skip
    rank = torch.cat([torch.linalg.matrix_rank(part) for part in frames.split(TOGETHER)]).cpu().numpy()
    columns = (frames.norm(dim=2) > 0).sum(1).cpu().numpy()
    data |= {
        "n_tokens": v("word", length, "tokens of the word", "token"),
        "n_distinct": v("word", [len(set(row)) for row in ids], "different tokens of the word", "token"),
        "relative_rank": v("word", np.where(columns > 0, rank / np.maximum(columns, 1), np.nan),
                           "rank of the frame by its columns", "1", FRAMES, range=(0, 1)),
        "orthogonality": v("word", _mean_cosine(frames), "mean absolute cosine of the columns", "1", range=(0, 1)),
    }  # fmt: skip
    strings = Vocabulary(model.tokenizer, model.info.d_vocab).strings
    coords = {
        "word": v("word", np.arange(len(words)), "number of the word", "1"),
        "text": v("word", np.array([w for _, w in words]), "the word", "1"),
        "concept": v("word", np.array(list(concepts), object)[concept], "its concept", "1"),
        "tokens": v("word", np.array(["|".join(strings(row)) for row in ids]), "its tokens", "1"),
    }
    ds = xr.Dataset(data, coords, {"dimensions": "word", "first": "cosine, projection, relative_rank"})
    settings = {
        "concepts": {k: list(w) for k, w in concepts.items()}, "max_tokens": max_tokens, "leave_out": leave_out,
        "trained": None if trained is None else np.asarray(trained).tolist(),
    }  # fmt: skip
    return stamped(ds, "word_frames", model, "", settings, seed)


def compare_frames(f: torch.Tensor, g: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return projection and cosine of pairs of frames (pair, column, d), NaN where one has no column.

    Examples
    --------
    >>> f = 2 * torch.eye(3).double()[None]
    >>> projection, cosine = compare_frames(f, f / 2)
    >>> projection.tolist(), cosine.round(6).tolist()
    ([2.0], [1.0])
    """
    product = (f * g).sum((1, 2))
    k = ((f.norm(dim=2) > 0).sum(1) * (g.norm(dim=2) > 0).sum(1)).double().sqrt()
    size = f.norm(dim=(1, 2)) * g.norm(dim=(1, 2))
    return (product / k).cpu().numpy(), (product / size).cpu().numpy()


def _concept_frames(frames: torch.Tensor, concept: np.ndarray, length: np.ndarray, leave_out: bool) -> torch.Tensor:
    """Return (word, column, d) the frame of each word's concept: polar factors as wide as its longest word."""
    at = torch.from_numpy(concept).to(frames.device)
    total = torch.zeros(concept.max() + 1, *frames.shape[1:], dtype=frames.dtype, device=frames.device)
    total.index_add_(0, at, frames)
    sums, widest = total[at] - frames if leave_out else total[at], np.zeros(len(concept), int)
    for n in range(len(concept)):
        mates = concept == concept[n]
        mates[n] &= not leave_out
        widest[n] = length[mates].max(initial=0)
    out = torch.zeros_like(frames)
    for k in np.unique(widest[widest > 0]).tolist():
        these = np.flatnonzero(widest == k)
        for some in np.array_split(these, -(-len(these) // TOGETHER)):
            out[some, :k] = polar(sums[some, :k])
    return out


def polar(frames: torch.Tensor) -> torch.Tensor:
    """Return the orthonormal frames nearest to some (frame, column, d); of equal columns one direction is left.

    Examples
    --------
    >>> polar(torch.tensor([[[3.0, 0.0], [0.0, 0.5]]]).double()).tolist()
    [[[1.0, 0.0], [0.0, 1.0]]]
    """
    u, s, vh = torch.linalg.svd(frames, full_matrices=False)
    kept = s > 1e-10 * s[:, :1]  # no arbitrary direction is added
    return (u * kept[:, None]) @ vh


def _other_words(concept: np.ndarray, length: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return for each word one of another concept, of its length where there is one."""
    out = np.empty(len(concept), int)
    for n in range(len(concept)):
        others = np.flatnonzero(concept != concept[n])
        same = others[length[others] == length[n]]
        out[n] = rng.choice(same if len(same) else others)
    return out


def _mean_cosine(frames: torch.Tensor) -> np.ndarray:
    size = frames.norm(dim=2, keepdim=True)
    units = frames / size.clamp(min=1e-300)
    k = (size[..., 0] > 0).sum(1)
    total = (units @ units.mT).abs().sum((1, 2)) - k
    return torch.where(k > 1, total / (k * (k - 1)), torch.nan).cpu().numpy()
