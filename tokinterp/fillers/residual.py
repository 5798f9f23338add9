"""The stream at the answer position and at the fillers: shift, drift, answer attribution, redundancy, probes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
import xarray as xr

from ..models.steady import steady
from ..results.dataset import bound_coord, layer_coords, variable
from ..results.documents import interval_name
from ..results.stamp import finish
from ..run.edits import renumber
from ..run.edits.places import closed_up
from ..run.sites import resid
from ..run.states import embeddings_alone
from ..run.stream import stream
from ..settings import checked, count, one_of, positive, several, short
from ..stats.explained import explained_band, share_explained
from ..stats.linear import held_out
from ..text.items import PLACEMENTS, Items, build_items
from .asked import Asked, asked_questions, parted, settings_of
from .results import numbers

if TYPE_CHECKING:
    from ..models.base import Model

VARIANTS = ("places as they are", "places closed")


def states(
    model: Model, items: Items, positions: np.ndarray, layers: Sequence[int] | None = None, *,
    closed: bool = False, batch_tokens: int = 4096,
) -> torch.Tensor:  # fmt: skip
    """Return (item, slot, layer, d_model) float32, the stream at some positions of each item, on the CPU.

    Parameters
    ----------
    positions : numpy.ndarray
        (item, slot) positions.
    layers : sequence of int, optional
        All by default.
    closed : bool
        Whether what follows the fillers gets the places it has without them.
    """
    wanted = list(range(model.info.n_layers + 1) if layers is None else layers)
    shape = (len(items), positions.shape[1], len(wanted), model.info.d_model)
    out = torch.full(shape, torch.nan, dtype=torch.float32, device="cpu")
    edits = [renumber(closed_up(items.mark("filler"), items.prompts))] if closed else []
    for batch in stream(model, items.prompts, resid(wanted), edits=edits, batch_tokens=batch_tokens):
        at = torch.from_numpy(positions[batch.numbers]).to(batch.device)[..., None]
        for i, layer in enumerate(wanted):
            value = batch.resid(layer)
            out[batch.numbers, :, i] = value.gather(1, at.expand(-1, -1, value.shape[-1])).float().cpu()
    return out


def slots_of(items: Items) -> np.ndarray:
    """Return (item, slot) positions of the fillers."""
    return items.filler[:, :1] + np.arange(items.n_fillers)


def finite_items(h: torch.Tensor, questions: Any, least: int = 1) -> np.ndarray:
    """Return (item,) which items have finite states, (item, ...), everywhere: the others take no part in any number.

    Raises
    ------
    ValueError
        If fewer than ``least`` have.
    """
    known = h.isfinite().flatten(1).all(1).numpy()
    if (n := int(known.sum())) < least:
        rest = "" if n == len(known) else f", {n} of them finite"
        raise ValueError(f"questions={short(questions)}: {len(known)} items{rest}: {least} are needed")
    return known


def _of_all(values: torch.Tensor, known: np.ndarray) -> torch.Tensor:
    """Return (item, ...) values of the items that are finite, with NaN for the others."""
    out = values.new_full((len(known), *values.shape[1:]), torch.nan)
    out[known] = values
    return out


@checked(n_fillers=several(count(), 1), placement=one_of(*PLACEMENTS))
@steady
def shift(
    model: Model,
    questions: Iterable[Any] | None = None,
    *,
    n_fillers: Sequence[int] = (2, 4, 10, 20, 50),
    placement: str = "post",
    **asked: Unpack[Asked],
) -> xr.Dataset:
    """Follow what fillers do to the stream at the answer position, layer by layer.

    Parameters
    ----------
    n_fillers : sequence of int
        Grid of k; 0 is always added.
    model, questions, placement
        See `build_items`.
    **asked
        ``kind``, ``cue``, ``exact``, ``seed``: see `tokinterp.fillers.asked.Asked`.

    Returns
    -------
    xarray.Dataset
        By item, ``n_fillers`` and ``layer``: ``shift`` = ||h(x_k) - h(x_0)|| / ||h(x_0)|| and ``cosine``, on
        ``variant`` also with the places behind the fillers closed (what rotary positions do by themselves);
        ``increment``, the shift from the grid value before; ``attribution``, what the block before the layer (at layer
        0: the embedding) adds to the logit of the answer with the scale of the final norm frozen, which sums over
        layers to ``logit`` less ``constant`` (the biases). By ``n_fillers`` and ``layer``: ``bias_share`` =
        ||mean shift||^2 / mean ||shift||^2, 1 if fillers move all items alike and about 1/n if not at all. Items that
        are not finite with all numbers of fillers are NaN and take no part; ``n_groups`` counts the others.

    Raises
    ------
    ValueError
        If no item is finite, the head is not linear behind the final norm (a soft cap), or the norm is none with a
        frozen scale.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, questions = ti.load_model(), ti.bundled_questions("cloze")[:4]
    >>> ti.fillers.shift(model, questions, n_fillers=[2])["bias_share"].dims
    ('n_fillers', 'layer')
    """
    how, _ = parted(asked, kind="dots")
    questions = asked_questions(questions)
    grid = sorted({0, *(int(k) for k in n_fillers)})
    made = [build_items(model, questions, n_fillers=k, placement=placement, **how) for k in grid]
    seen = [torch.stack([states(model, i, i.last[:, None], closed=c)[:, 0] for c in (False, True)]) for i in made]
    h = torch.stack(seen, 2).double()  # (variant, item, k, layer, d)
    known = finite_items(h.transpose(0, 1), questions)
    h[:, ~known] = torch.nan
    base = h[:, :, :1]
    delta = h - base
    size = base.norm(dim=-1)
    step = (h[0, :, 1:] - h[0, :, :-1]).norm(dim=-1) / h[0, :, :-1].norm(dim=-1)
    first = torch.tensor([int(a[0]) for a in made[0].answers], dtype=torch.int64, device="cpu")
    parts, constant, logit = (_of_all(x, known) for x in attribute(model, h[0, known].float(), first[known]))
    moved = delta[0, known]
    square = moved.pow(2).sum(-1).mean(0)
    share = moved.mean(0).pow(2).sum(-1) / torch.where(square > 0, square, torch.nan)
    by, each = ("n_fillers", "layer"), ("prompt", "n_fillers", "layer")
    both = ("variant", *each)
    data = {
        "shift": variable(both, delta.norm(dim=-1) / size, "shift of the stream at the answer position", "1"),
        "cosine": variable(both, torch.cosine_similarity(h, base, dim=-1), "cosine with the stream without", "1"),
        "increment": variable(each, np.pad(step.numpy(), ((0, 0), (1, 0), (0, 0)), constant_values=np.nan),
                              "shift from the number of fillers before", "1"),
        "attribution": variable(each, parts, "what a block adds to the logit of the answer, norm scale frozen", "nat"),
        "constant": variable(each[:2], constant, "part of the logit that is no layer's", "nat"),
        "logit": variable(each[:2], logit, "logit of the first token of the answer", "nat"),
        "bias_share": variable(by, share, "share of the shift that is the same for all items", "1"),
    }  # fmt: skip
    coords = {
        "prompt": numbers(len(made[0])),
        "n_fillers": variable("n_fillers", np.array(grid), "filler tokens", "token"),
        "variant": variable("variant", np.array(VARIANTS), "places of what follows the fillers", "1"),
        **layer_coords(range(model.info.n_layers + 1), model.info),
    }
    settings = settings_of(questions, how, n_fillers=grid, placement=placement)
    ds = xr.Dataset(data, coords, {"n_groups": int(known.sum()), "groups": "items"})
    return finish(ds, model, "shift", settings, how["seed"])


def attribute(model: Model, h: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split the logit of a token over layers with the scale of the final norm frozen.

    Parameters
    ----------
    h : torch.Tensor
        (item, ..., layer, d_model) stream at all layers.
    target : torch.Tensor
        (item,) token ids.

    Returns
    -------
    parts, constant, logit : torch.Tensor
        (item, ..., layer), (item, ...), (item, ...) float64; parts sum over layers to logit - constant.
    """
    d = h.shape[-1]
    signs = torch.ones(d, dtype=torch.float32, device="cpu")
    signs[1::2] = -1
    with torch.no_grad():
        zero = model.normed(torch.zeros(1, d, device=model.device, dtype=torch.float32)).float().cpu()[0]
        gain = (model.normed(signs[None].to(model.device) * 1e3).float().cpu()[0] - zero) * signs
        one = model.normed(torch.full((1, d), 1e3, device=model.device, dtype=torch.float32)).float().cpu()[0] - zero
        centred = bool(one.abs().max() < 0.5 * gain.abs().max())
        final = model.normed(h[..., -1, :].to(model.device)).float().cpu()
    piece = torch.diff(h, dim=-2, prepend=torch.zeros_like(h[..., :1, :])).double()
    if centred:
        piece = piece - piece.mean(-1, keepdim=True)
    grown = piece * gain.double()
    total = grown.sum(-2)
    scale = (final.double() - zero.double()).mul(total).sum(-1) / total.pow(2).sum(-1)
    if not torch.allclose(total * scale[..., None] + zero, final.double(), rtol=1e-3, atol=1e-3):
        raise ValueError(f"the final norm of {model.info.architecture} is no layer norm or RMS norm")
    terms = grown * scale[..., None, None]

    def logits_of(x: torch.Tensor) -> torch.Tensor:
        index = target.view(-1, *[1] * (x.ndim - 2)).expand(x.shape[:-1])
        out = [
            model.head(part.float().to(model.device)).cpu().gather(-1, i[..., None])[..., 0]
            for part, i in zip(x, index, strict=True)
        ]
        return torch.stack(out).double()

    with torch.no_grad():
        nothing = logits_of(torch.zeros_like(terms))
        parts = logits_of(terms) - nothing
        constant = logits_of(zero.expand_as(final))
        logit = logits_of(final)
    if not torch.allclose(parts.sum(-1) + constant, logit, rtol=1e-3, atol=1e-2):
        raise ValueError(
            f"the head of {model.info.architecture} is not linear (a soft cap on the logits): the logit of the answer "
            "is no sum over layers"
        )
    return parts, constant, logit


@checked(n_fillers=count(2), placement=one_of(*PLACEMENTS))
@steady
def filler_states(
    model: Model,
    questions: Iterable[Any] | None = None,
    *,
    n_fillers: int = 10,
    placement: str = "post",
    **asked: Unpack[Asked],
) -> xr.Dataset:
    """Describe the states of the fillers: do they differ from each other, and from item to item?

    Parameters
    ----------
    model, questions, n_fillers, placement
        See `build_items`.
    **asked
        ``kind``, ``cue``, ``exact``, ``seed``: see `tokinterp.fillers.asked.Asked`.

    Returns
    -------
    xarray.Dataset
        By layer and ``slot``: ``next_cosine`` with the next filler, and ``next_cosine_centred`` after the mean over
        items at each slot is taken away (the last slot is NaN). By layer and ``component`` (slot, item, residual):
        ``variance_share`` of a two-way split and ``chance_share``, that of independent noise. By layer:
        ``same_slot_cosine`` over pairs of items. Items that are not finite take no part; ``n_groups`` counts the
        others.

    Raises
    ------
    ValueError
        For fewer than two fillers, or items that are finite.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, questions = ti.load_model(), ti.bundled_questions("cloze")[:4]
    >>> ds = ti.fillers.filler_states(model, questions, n_fillers=4)
    >>> bool((ds["variance_share"].sum("component").isel(layer=4) < 1.001).all())
    True
    """
    how, _ = parted(asked, kind="dots")
    questions = asked_questions(questions)
    items = build_items(model, questions, n_fillers=n_fillers, placement=placement, **how)
    h = states(model, items, slots_of(items)).double()  # (item, slot, layer, d)
    h = h[finite_items(h, questions, 2)]
    n, s = h.shape[:2]
    centred = h - h.mean(0)
    pad_last = ((0, 1), (0, 0))
    raw, own = (
        np.pad(torch.cosine_similarity(x[:, :-1], x[:, 1:], dim=-1).mean(0).numpy(), pad_last, constant_values=np.nan)
        for x in (h, centred)
    )
    grand = h.mean((0, 1))
    total = (h - grand).pow(2).sum((0, 1, 3))
    slot = n * (h.mean(0) - grand).pow(2).sum((0, 2))
    item = s * (h.mean(1) - grand).pow(2).sum((0, 2))
    shares = torch.stack([slot, item, total - slot - item]) / total
    noise = np.array([s - 1, n - 1, (s - 1) * (n - 1)]) / (n * s - 1)
    unit = torch.nn.functional.normalize(h, dim=-1)
    same = ((unit.sum(0).pow(2).sum(-1) - n) / (n * (n - 1))).mean(0)
    both = ("layer", "slot")
    data = {
        "next_cosine": variable(both, raw.T, "cosine of a filler with the next", "1"),
        "next_cosine_centred": variable(both, own.T, "the same without the mean over items", "1"),
        "variance_share": variable(("component", "layer"), shares, "share of the variance of filler states", "1"),
        "chance_share": variable("component", noise, "share if all were independent noise", "1"),
        "same_slot_cosine": variable("layer", same, "cosine of the same slot in two items", "1"),
    }
    coords = {
        "slot": variable("slot", np.arange(s), "place among the fillers", "1"),
        "component": variable("component", np.array(["slot", "item", "residual"]), "part of the variance", "1"),
        **layer_coords(range(model.info.n_layers + 1), model.info),
    }
    settings = settings_of(questions, how, n_fillers=n_fillers, placement=placement)
    ds = xr.Dataset(data, coords, {"n_groups": n, "groups": "items"})
    return finish(ds, model, "filler_states", settings, how["seed"])


@checked(n_fillers=count(1), folds=count(2), ridge=positive)
@steady
def filler_probes(
    model: Model,
    questions: Iterable[Any] | None = None,
    *,
    n_fillers: int = 10,
    folds: int = 5,
    ridge: float = 1.0,
    **asked: Unpack[Asked],
) -> xr.Dataset:
    """Read answers and inputs from fillers, question and cue with ridge probes, folds over items.

    A probe predicts the embedding of a token; what is given is the cross-validated share of its variance. Targets:
    the ``answer``, the last token of the question (``input``), and ``shuffled answer``, the control. Sources: the mean
    filler, the last token of the question, the first and last of the cue. What can be decoded need not be used; the
    contrast "filler yes, question no" is the informative one.

    Parameters
    ----------
    model, questions, n_fillers
        As in `filler_states`.
    folds : int
        Parts of the items; a probe is fitted on the others and scored on one.
    ridge : float
        Penalty, in units of the mean eigenvalue of the states' covariance.
    **asked
        ``kind``, ``cue``, ``exact``, ``seed``: see `tokinterp.fillers.asked.Asked`.

    Returns
    -------
    xarray.Dataset
        ``explained`` by ``target``, ``source`` and ``layer``, with ``explained_interval`` over items and
        ``explained_band``, the same for all layers at once: that of the best layer; at most 1, below 0 where the mean
        does better. Items that are not finite take no part; ``n_groups`` counts the others.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, questions = ti.load_model(), ti.bundled_questions("cloze")[:12]
    >>> ds = ti.fillers.filler_probes(model, questions, n_fillers=2, folds=2)
    >>> bool((ds["explained"] <= 1).all())
    True
    """
    how, _ = parted(asked, kind="dots")
    questions = asked_questions(questions)
    items = build_items(model, questions, n_fillers=n_fillers, **how)
    if len(items) < 2 * folds:
        raise ValueError(f"folds={folds}: {len(items)} items: give at least {2 * folds}, or fewer folds")
    at = {
        "mean filler": slots_of(items), "last of question": items.question[:, 1:] - 1,
        "first of cue": items.cue[:, :1], "answer position": items.last[:, None],
    }  # fmt: skip
    h = torch.stack([states(model, items, positions).double().mean(1) for positions in at.values()], 1)
    known = finite_items(h, questions, 2 * folds)
    h, n = h[known].numpy(), int(known.sum())  # (item, source, layer, d)
    seed = how["seed"]
    rng = np.random.default_rng(seed)
    answer = np.array([a[0] for a in items.answers])[known]
    wanted = {
        "answer": answer,
        "input": np.array([i[b - 1] for i, b in zip(items.ids, items.question[:, 1], strict=True)])[known],
        "shuffled answer": answer[rng.permutation(n)],
    }
    embedded = {t: embeddings_alone(model, x) for t, x in wanted.items()}
    fold = rng.permutation(n) % folds
    out = np.zeros((2, n, len(wanted), len(at), model.info.n_layers + 1))
    for j, layer in np.ndindex(h.shape[1:3]):
        for i, y in enumerate(embedded.values()):
            out[:, :, i, j, layer] = held_out(h[:, j, layer], y, fold, folds, ridge)
    unit = np.arange(n)
    value, *bounds = share_explained(out[0], out[1], unit, seed=seed)
    band = explained_band(out[0], out[1], unit, seed=seed)
    each, what = ("target", "source", "layer"), "variance of the target explained, held out"
    over = interval_name(what, 0.95, "items", n)
    data = {
        "explained": variable(each, value, what, "1"),
        "explained_interval": variable(("bound", *each), np.stack(bounds), over, "1"),
        "explained_band": variable(
            ("bound", *each), band, interval_name(f"{what}, at all layers at once,", 0.95, "items", n), "1"
        ),
    }
    coords = {
        "bound": bound_coord(),
        "target": variable("target", np.array(list(wanted)), "whose embedding is predicted", "1"),
        "source": variable("source", np.array(list(at)), "where it is read", "1"),
        **layer_coords(range(model.info.n_layers + 1), model.info),
    }
    settings = settings_of(questions, how, n_fillers=n_fillers, folds=folds, ridge=ridge)
    ds = xr.Dataset(data, coords, {"n_groups": n, "groups": "items"})
    return finish(ds, model, "filler_probes", settings, seed)
