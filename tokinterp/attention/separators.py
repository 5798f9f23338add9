"""Separators as summaries of segments (Chen et al. 2025): who reads past segments there, what they hold and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch
import xarray as xr

from ..behaviour.loss import TokenLoss
from ..models.steady import steady
from ..results.dataset import bound_coord, layer_coords, variable
from ..results.documents import groups_of_prompts, interval_name
from ..results.stamp import finish, stamped
from ..run.conditions import Condition, Runs, compared
from ..run.measurement import choose_layers
from ..run.states import embeddings_alone, states
from ..settings import checked, count, positive
from ..stats.explained import explained_band, share_explained
from ..stats.linear import held_out
from ..text.marks import mark
from ..text.prompts import Prompts
from .masks import SEP, Policy, _noise, keep_only, of_prompts, separators_of

if TYPE_CHECKING:
    from ..models.base import Model

SOURCES = ("separator", "last content token", "separator of another segment")
TARGETS = ("segment", "segment without its last token")


@checked(least=count(2), folds=count(2), ridge=positive)
@steady
def segment_probe(
    model: Model,
    prompts: Prompts,
    *,
    layers: Sequence[int] | None = None,
    least: int = 3,
    folds: int = 5,
    ridge: float = 1.0,
    batch_tokens: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Read the mean embedding of a segment's content from its separator and from its last content token.

    Ridge probes, folds over prompts. The last content token knows its own embedding, which is part of the mean: the
    second target leaves it out, and compares the two fairly.

    Parameters
    ----------
    layers : sequence of int, optional
        All by default.
    least : int
        Content tokens that a segment must have.
    folds : int
        Parts of the prompts, documents kept whole; a probe is fitted on the others and scored on one.
    ridge : float
        Penalty, in units of the mean eigenvalue of the states' covariance.
    model, prompts, batch_tokens, seed
        Model, texts with punctuation, padded tokens per batch; seed of the folds and of the control.

    Returns
    -------
    xarray.Dataset
        ``explained`` by ``target``, ``source`` and ``layer``, held-out share of the variance: at most 1, below 0 where
        the mean does better; ``explained_interval``, over documents (where prompts are windows of them) or prompts, and
        ``explained_band``, the same for all layers at once: that of the best layer. The third source, the separator of
        another segment of the same prompt, is the control for what all segments of a text share. ``n_segments``.

    Raises
    ------
    ValueError
        For fewer prompts (or documents) with two segments than folds, or ``least`` below 2.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [t.text for t in ti.bundled_texts("article")[:8]]
    >>> prompts = ti.Prompts.from_texts(texts, model, max_tokens=96)
    >>> ds = ti.attention.segment_probe(model, prompts, layers=[4], folds=2)
    >>> ds["layer"].values.tolist()
    [4]
    """
    marks = separators_of(prompts)
    spans = [segments(np.asarray(prompts.ids(i)), marks, 1 if prompts.bos else 0, least) for i in range(len(prompts))]
    rows = [i for i, s in enumerate(spans) if len(s) >= 2]
    document, groups = groups_of_prompts(prompts, np.array(rows, dtype=np.int64))
    found, place = np.unique(document, return_inverse=True)
    if len(found) < folds:
        raise ValueError(
            f"folds={folds}, least={least}: {len(found)} {groups} have two segments of {least} or more tokens before a "
            f"separator: give at least {folds}"
        )
    chosen = choose_layers(layers, model.info)
    ends = {r: prompts.starts[r] + np.array([places[[-1, -2]] for places in spans[r]]) for r in rows}
    where = np.isin(np.arange(prompts.n_tokens), np.concatenate([places.ravel() for places in ends.values()]))
    slot = np.cumsum(where) - 1
    held_states = states(model, prompts, chosen, where, batch_tokens=batch_tokens)["state"].values
    kinds, inverse = np.unique(prompts.token_ids, return_inverse=True)
    embedding = torch.from_numpy(embeddings_alone(model, kinds))
    rng = np.random.default_rng(seed)
    target: list[list[torch.Tensor]] = [[], []]
    held: list[int] = []
    owner: list[int] = []
    part = dict(zip(rows, (rng.permutation(len(found)) % folds)[place], strict=True))  # no document in two parts
    both: list[np.ndarray] = []
    other: list[int] = []
    for r in [r for group in prompts.batches(4096, model=model) for r in group if r in part]:
        own = torch.from_numpy(inverse[prompts.starts[r] : prompts.starts[r] + prompts.lengths[r]])
        shift = 1 + int(rng.integers(len(spans[r]) - 1))
        x = held_states[slot[ends[r]]]  # (segment, source, layer, d)
        if not np.isfinite(x).all():
            continue
        other += [len(held) + (i + shift) % len(spans[r]) for i in range(len(spans[r]))]
        both.append(x)
        for places in spans[r]:
            content = embedding[own[places[:-1]]]
            target[0].append(content.mean(0))
            target[1].append(content[:-1].mean(0))
            held.append(int(part[r]))
            owner.append(r)
    own_ends = np.concatenate(both).astype(np.float64)
    h = np.stack([own_ends[:, 0], own_ends[:, 1], own_ends[other, 0]], 1)
    fold = np.array(held)
    out = np.zeros((2, len(held), len(target), 3, len(chosen)))
    for i, y in enumerate(torch.stack(t).numpy() for t in target):
        for s in range(3):
            for n in range(len(chosen)):
                out[:, :, i, s, n] = held_out(h[:, s, n], y, fold, folds, ridge)
    unit = document[np.searchsorted(rows, owner)]
    value, *bounds = share_explained(out[0], out[1], unit, seed=seed)
    band = explained_band(out[0], out[1], unit, seed=seed)
    each, what = ("target", "source", "layer"), "variance of the target explained, held out"
    over = interval_name(what, 0.95, groups, len(found))
    data = {
        "explained": variable(each, value, what, "1"),
        "explained_interval": variable(("bound", *each), np.stack(bounds), over, "1"),
        "explained_band": variable(
            ("bound", *each), band, interval_name(f"{what}, at all layers at once,", 0.95, groups, len(found)), "1"
        ),
        "n_segments": variable((), len(held), "segments", "1"),
    }
    coords = {
        "target": variable("target", np.array(TARGETS), "whose mean embedding is predicted", "1"),
        "source": variable("source", np.array(SOURCES), "where it is read", "1"),
        "bound": bound_coord(),
        **layer_coords(chosen, model.info),
    }
    settings = {"layers": chosen, "least": least, "folds": folds, "ridge": ridge, "questions": prompts.hash}
    return finish(
        xr.Dataset(data, coords, {"n_groups": len(found), "groups": groups}), model, "segment_probe", settings, seed
    )


def segments(ids: np.ndarray, marks: Sequence[int], start: int = 0, least: int = 1) -> list[np.ndarray]:
    """Return the positions of each segment that ends with a separator: its content tokens, then the first separator.

    Examples
    --------
    >>> [s.tolist() for s in segments(np.array([0, 5, 6, 9, 9, 7, 9, 8]), (9,), start=1)]
    [[1, 2, 3], [5, 6]]
    """
    out, begin = [], start
    for end in np.flatnonzero(np.isin(ids, marks)):
        if end - begin >= least:
            out.append(np.arange(begin, end + 1))
        begin = max(begin, int(end) + 1)
    return out


@checked(width=count(1))
@steady
def separator_windows(
    model: Model, prompts: Prompts, *, width: int | None = None, seed: int = 0, **run: Unpack[Runs]
) -> xr.Dataset:
    """Hide the separators from all later tokens in one window of blocks after the other, and in all.

    Parameters
    ----------
    model, prompts
        Model, texts with punctuation.
    width : int, optional
        Blocks in a window; by default a fifth of them.
    seed : int
        Of the random keys.
    **run
        ``batch_tokens``, ``store``, ``share``, ...: see `tokinterp.run.conditions.Runs`.

    Returns
    -------
    xarray.Dataset
        By ``intervention`` (all blocks, then windows), ``policy`` (separators, or as many random other tokens of the
        same prompt, never the first) and prompt: ``kl``, mean over the positions behind the first separator of
        KL(changed || whole) of the next token, and ``loss_change``. ``n_hidden`` keys by policy and prompt. Prompts
        without a separator before their last token are NaN.

    Raises
    ------
    ValueError
        Without separators.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [t.text for t in ti.bundled_texts("article")[:2]]
    >>> prompts = ti.Prompts.from_texts(texts, model, max_tokens=64)
    >>> ds = ti.attention.separator_windows(model, prompts)
    >>> ds.attrs["measurement"]
    'separator_windows'
    """
    marks = separators_of(prompts)
    n = model.info.n_layers
    width = width or max(1, round(n / 5))
    spans: dict[str, list[int] | None] = {"all blocks": None}
    spans |= {f"blocks {a}-{min(a + width, n) - 1}": list(range(a, min(a + width, n))) for a in range(0, n, width)}
    policies = {"separators": Hidden(marks), "random": Hidden(marks, random=True, seed=seed)}
    before = np.cumsum(np.append(0, np.isin(prompts.token_ids, marks)))[:-1]
    behind = mark(prompts, behind=before > np.repeat(before[prompts.starts[:-1]], prompts.lengths))
    conditions = {"whole": Condition(behind)} | {
        f"{name} in {span}": Condition(behind, [keep_only(policy, blocks)])
        for span, blocks in spans.items() for name, policy in policies.items()
    }  # fmt: skip
    found = compared(model, conditions, {"loss": TokenLoss("behind", divergence=True)}, **run)
    if found is None:
        return xr.Dataset()
    loss, kl = (found["loss"][k].transpose("condition", "prompt").values for k in ("loss", "kl"))
    shape = (len(spans), len(policies), len(prompts))
    hidden = [of_prompts(prompts, lambda *x, p=p: p.keys(*x).sum(1)) for p in policies.values()]
    each = ("intervention", "policy", "prompt")
    data = {
        "kl": variable(
            each, kl[1:].reshape(shape), "mean KL divergence of the next token from the whole model's", "nat", SEP
        ),
        "loss_change": variable(
            each, (loss[1:] - loss[0]).reshape(shape), "change of the cross-entropy of the next token", "nat"
        ),
        "n_hidden": variable(each[1:], hidden, "tokens hidden from those behind them", "1"),
    }
    coords = {
        "prompt": _numbers(prompts),
        "intervention": variable("intervention", np.array(list(spans)), "where they are hidden", "1"),
        "policy": variable("policy", np.array(list(policies)), "what is hidden", "1"),
    }
    return stamped(xr.Dataset(data, coords), "separator_windows", model, prompts, {"width": width}, seed)


@dataclass(frozen=True)
class Hidden:
    """Policy that hides separators, or as many random other tokens, from all tokens but themselves.

    Parameters
    ----------
    separators : tuple of int
        Their token ids.
    random : bool
        Whether to hide others in their place: neither separators nor the first token.
    seed : int
        Of the random ones.
    """

    separators: tuple[int, ...]
    random: bool = False
    seed: int = 0

    def keys(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return (prompt, position) bool, the tokens that are hidden."""
        marks = torch.isin(ids, torch.tensor(self.separators, device=ids.device, dtype=torch.int64)) & mask
        if not self.random:
            return marks
        closed = marks | ~mask
        closed[:, 0] = True
        rank = _noise(ids, mask, self.seed).masked_fill(closed, 3.0).argsort(1).argsort(1)
        return (rank < marks.sum(1, keepdim=True)) & ~closed

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return (prompt, query, key) bool, true where a query may read a key."""
        own = torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
        return Policy("all")(ids, mask) & (own | ~self.keys(ids, mask)[:, None, :])


def _numbers(prompts: Prompts) -> xr.Variable:
    return variable("prompt", np.arange(len(prompts)), "number of the prompt in the input", "1")
