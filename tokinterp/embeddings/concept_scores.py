"""ConceptScores: how far the states of a text lie along the frames of concepts, beside random frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..run.measurement import Field, Measurement
from ..settings import checked, count, mapping, pair, several, some_strings, string
from ..stats.resample import ratio
from ..tokenizers.reachability import encode
from .frames import FRAMES, polar, whitened_unembedding

if TYPE_CHECKING:
    from ..models.base import Model
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

RANDOM = 20  # frames that a concept is compared with
TOGETHER = 256  # frames at once
EACH = ("layer", "concept")


class ConceptFrames(NamedTuple):
    """Orthonormal frames of concepts, and random ones.

    Attributes
    ----------
    names : list of str
        Concepts.
    frames : torch.Tensor
        (concept, column, d) float64, zero columns behind the last one of a concept.
    random : torch.Tensor
        (replicate, column, d) float64 random orthonormal frames in the directions that the head uses, whose first k
        columns are a frame, too.
    """

    names: list[str]
    frames: torch.Tensor
    random: torch.Tensor

    @property
    def columns(self) -> torch.Tensor:
        """(concept,) int64 columns that are not zero."""
        return n_columns(self.frames)


def n_columns(frames: torch.Tensor) -> torch.Tensor:
    """Return (frame,) int64 columns of some frames (frame, column, d) that are not zero: those of equal ones are short.

    Examples
    --------
    >>> n_columns(torch.tensor([[[0.1, 0.0], [0.0, 0.0]]])).tolist()
    [1]
    """
    return (frames.norm(dim=2) > 0).sum(1)


def concept_ids(tokenizer: Any, concepts: Mapping[str, Sequence[str]], max_tokens: int) -> dict[str, list[list[int]]]:
    """Return the ids of the words of each concept that are short enough.

    Raises
    ------
    ValueError
        Without a tokenizer, or if a concept has no such word.
    """
    if tokenizer is None:
        raise ValueError("concepts: words need a tokenizer: wrap the model with one")
    out = {}
    for name, words in concepts.items():
        rows = [row for row in encode(tokenizer, list(dict.fromkeys(words))) if 0 < len(row) <= max_tokens]
        if not rows:
            raise ValueError(f"concepts[{name!r}]: it has no word of at most {max_tokens} tokens: give others, or a "
                             "larger max_tokens")  # fmt: skip
        out[name] = rows
    return out


def check_pairs(concepts: Mapping[str, Sequence[str]], pairs: Sequence[tuple[str, str]]) -> None:
    """Refuse differences of what is no concept, or of a concept with itself."""
    for one, other in pairs:
        for name in (one, other):
            if name not in concepts:
                raise ValueError(f"pairs: {name!r} is none of the concepts {', '.join(concepts)}")
        if one == other:
            raise ValueError(f"pairs: {one!r} less itself is nothing: give two concepts")


def concept_frames(
    model: Model, ids: Mapping[str, Sequence[Sequence[int]]], pairs: Sequence[tuple[str, str]] = (), seed: int = 0
) -> ConceptFrames:
    """Return the frames of concepts, and of differences of two of them.

    Parameters
    ----------
    model : Model
        Whose head is whitened.
    ids : mapping of str to sequence of ids
        Words of each concept, from `concept_ids`.
    pairs : sequence of (str, str)
        Of each the frame nearest to the difference of the two becomes a concept "a - b".
    seed : int
        Of the random frames.
    """
    whitened = whitened_unembedding(model)
    rows, most = whitened.rows, max(len(row) for words in ids.values() for row in words)
    frames = torch.zeros(len(ids) + len(pairs), most, rows.shape[1], dtype=torch.float64, device=rows.device)
    for n, words in enumerate(ids.values()):
        total = torch.zeros(max(map(len, words)), rows.shape[1], dtype=torch.float64, device=rows.device)
        for row in words:
            total[: len(row)] += rows[list(row)]
        frames[n, : len(total)] = polar(total[None])[0]
    names = list(ids)
    for n, (one, other) in enumerate(pairs, len(ids)):
        between = frames[names.index(one)] - frames[names.index(other)]
        k = int((between.norm(dim=1) > 0).nonzero().max()) + 1
        frames[n, :k] = polar(between[None, :k])[0]
    noise = np.random.default_rng(seed).standard_normal((RANDOM, most, whitened.rank))
    random = torch.linalg.qr(torch.from_numpy(noise).to(rows.device).mT).Q.mT @ whitened.axes.T
    return ConceptFrames([*names, *(f"{a} - {b}" for a, b in pairs)], frames, random)


def project(states: torch.Tensor, keep: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Return (prompt, position, frame) float64 tr(F'C) / sqrt(k_F k_C) of the frame that begins at each position.

    Parameters
    ----------
    states : torch.Tensor
        (prompt, position, d), after the final norm.
    keep : torch.Tensor
        (prompt, position) bool; other states are columns of zeros.
    frames : torch.Tensor
        (frame, column, d) float64, zero columns last.

    Examples
    --------
    >>> x = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]])
    >>> project(x, torch.ones(1, 3, dtype=torch.bool), torch.eye(2).double()[None])[0, :, 0].tolist()
    [1.5, 0.0, 0.0]
    """
    x = states.double() * keep[..., None]
    width, k = x.shape[1], frames.shape[1]
    parts = []
    for some in frames.split(TOGETHER):
        of_concept = n_columns(some)
        total = torch.zeros(*x.shape[:2], len(some), dtype=torch.float64, device=x.device)
        columns = torch.zeros_like(total)
        for j in range(min(k, width)):
            total[:, : width - j] += x[:, j:] @ some[:, j].T
            columns[:, : width - j] += keep[:, j:, None] * (of_concept > j)
        parts.append(total / (columns.clamp(min=1) * of_concept.clamp(min=1)).sqrt())
    return torch.cat(parts, 2)


@checked(
    concepts=mapping(some_strings, 1), pairs=several(pair(string, string)), max_tokens=count(1),
)  # fmt: skip
class ConceptScores(Measurement):
    """Projection of the states of a text on concepts, frames of whitened rows of the head, token by token and summed.

    The frame of a text at a place has the states there and at the places behind it as columns, as many as the concept
    has; they are those that the head reads, after the final norm, at any layer.

    Parameters
    ----------
    concepts : mapping of str to sequence of str
        Words of each concept, as they are to be tokenised, such as `tokinterp.text.read_wordnet` gives them.
    pairs : sequence of (str, str)
        Of each the frame nearest to the difference of the two concepts is one more, "a - b".
    layers : iterable of int, optional
        All by default; published is the last.
    max_tokens : int
        Longer words are left out (3 as published).
    tokens : int, optional
        Fields of single tokens are kept for the prompts numbered below this; None keeps all, 0 none.
    exclude : sequence of str
        States that are columns of zeros, ``"special"`` and ``"massive"``; published is ``()``.
    seed : int
        Of the random frames.

    Notes
    -----
    Concepts are orthonormal frames, so that random frames with as many columns have their norm: ``above_random`` says
    how many of 20 have a lower score, 0.5 by chance.  The states of a text share a direction, which concepts lie along
    by chance; what says something is a text beside others (``contrast``), or a concept beside ``score_other``, the mean
    of the others: differences count in none, and of a difference its two concepts do not (NaN without a third).

    References
    ----------
    github.com/phvv-me/frame-representation-hypothesis.

    Examples
    --------
    >>> import tokinterp as ti
    >>> words = {"instrument": [" telescope", " microscope"], "water": [" river", " sea", " lake"]}
    >>> ask = {"scores": ti.embeddings.ConceptScores(words, max_tokens=5)}
    >>> run = ti.measure(ti.load_model(), ["The Nile is a river."], ask, progress=False)
    >>> run["scores"]["score"].dims
    ('prompt', 'layer', 'concept')
    """

    first = ("score", "above_random", "token_score")
    fields = {
        "n_tokens": Field(("prompt", "layer"), "states that take part", "token"),
        "score": Field(
            ("prompt", *EACH), "mean projection of the text on the concept", "1", FRAMES,
            short="projection on the concept", chance=0, beside=("score_other",),
        ),
        "score_other": Field(
            ("prompt", *EACH), "mean projection of the text on concepts that are no part of it",
            short="on other concepts", chance=0,
        ),
        "above_random": Field(
            ("prompt", *EACH), "share of random frames with a lower score", range=(0, 1), chance=0.5
        ),
        "token_projection": Field(("token", *EACH), "projection of the frame that begins at the token", chance=0),
        "token_score": Field(
            ("token", *EACH), "sum of the projections up to the token", "1", FRAMES, short="summed projection", chance=0
        ),
    }  # fmt: skip

    def __init__(
        self, concepts: Mapping[str, Sequence[str]], pairs: Sequence[tuple[str, str]] = (),
        layers: Iterable[int] | None = None, max_tokens: int = 3, tokens: int | None = 8,
        exclude: Sequence[str] = ("special",), seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.concepts, self.pairs, self.layers = dict(concepts), [*pairs], layers
        self.max_tokens, self.tokens, self.exclude, self.seed = max_tokens, tokens, tuple(exclude), seed
        check_pairs(self.concepts, self.pairs)

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Tokenise the words of the concepts."""
        super().begin(info, prompts)
        self._ids = concept_ids(prompts.vocabulary.tokenizer, self.concepts, self.max_tokens)
        self._others = torch.from_numpy(self._weights())
        self._found: ConceptFrames | None = None

    def _weights(self) -> np.ndarray:
        """Return (concept, concept) by which a score counts in ``score_other`` of another: 0 for parts and differences.

        NaN where nothing counts.
        """
        names = list(self.concepts)
        parts = [{n} for n in names] + [{a, b} for a, b in self.pairs]
        table = np.array([[len(own) == 1 and not own & of for of in parts] for own in parts])
        return ratio(table.astype(float), table.sum(0, keepdims=True).repeat(len(table), 0))

    def update(self, batch: Batch) -> None:
        """Take the projections of a batch, layer by layer; the frames are those of the model of the run."""
        if self._found is None:
            self._found = concept_frames(batch.model, self._ids, self.pairs, self.seed)
        found = self._found
        parts: dict[str, list[torch.Tensor]] = {n: [] for n in self.fields}
        sizes = {int(k): found.random[:, : int(k)] for k in found.columns.unique()}
        for layer in self.at_layers():
            keep = batch.kept(self.exclude, layer)
            states = batch.model.normed(batch.resid(layer))
            each, number = project(states, keep, found.frames) * keep[..., None], keep.sum(1)
            score = each.sum(1) / number[:, None]
            above = torch.zeros_like(score)
            for k, random in sizes.items():
                chance = (project(states, keep, random) * keep[..., None]).sum(1) / number[:, None]
                here = found.columns == k
                above[:, here] = (score[:, here, None] > chance[:, None]).double().mean(2)
            others = score @ self._others.to(score)
            made = {"n_tokens": number, "score": score, "score_other": others, "token_projection": each,
                    "above_random": torch.where(number[:, None] > 0, above, torch.nan),
                    "token_score": each.cumsum(1)}  # fmt: skip
            for name, value in made.items():
                parts[name].append(value)
        self.keep(batch, **{
            n: torch.stack(v, 2 if self.fields[n].table == "token" else 1) for n, v in parts.items()
        })  # fmt: skip

    def coords(self) -> Mapping[str, Any]:
        """Return the concepts."""
        names = [*self.concepts, *(f"{a} - {b}" for a, b in self.pairs)]
        return {"concept": (np.array(names, object), "concept", "1")}
