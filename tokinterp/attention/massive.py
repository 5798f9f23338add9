"""Massive activations: what they are worth, who carries them, and how they go with attention sinks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch
import xarray as xr

from ..behaviour.loss import TokenLoss
from ..kernels.massive import RULES, massive_entries, massive_rows, measure_sizes
from ..models.steady import steady
from ..results.dataset import block_coords, layer_coords, variable
from ..results.stamp import stamped
from ..run.conditions import Condition, Runs, compared
from ..run.edits import apply
from ..run.measurement import Field, Measurement
from ..run.sites import Site, resid
from ..run.stream import stream
from ..settings import checked, mapping, one_of
from ..settings.describe import numbered
from ..text.marks import mark
from ..text.prompts import Prompts
from .first_token import FirstTokenAttention
from .kernels import attention_received, rank_correlation
from .masks import _noise
from .set_norms import SETS, SUN, SetNorms
from .token_sets import check_sets, resolve

if TYPE_CHECKING:
    from ..models.base import Model
    from ..models.info import ModelInfo
    from ..run.batch import Batch


SHORTEST = 4
"""Tokens that a prompt must have."""


@checked()
class NormAttention(Measurement):
    """Whether tokens of large norm receive attention, and how much what is taken from the first token varies.

    Parameters
    ----------
    blocks : iterable of int, optional
        All by default.

    Notes
    -----
    ``norm_rank_correlation`` is Spearman's, of the norm of a token entering the block and the attention it receives,
    mean over heads. ``update_variation`` is how much what queries take from position 0 varies over queries,
    ||u_q - mean u|| / ||mean u|| as root mean square, from the third query on; a constant update is a bias. Both are
    NaN for prompts of fewer than 4 tokens.

    Memory: 10 x heads x n^2 bytes for every prompt of a batch, padded to n tokens, in float32: the patterns of a block
    at a time.

    Examples
    --------
    >>> import tokinterp as ti
    >>> asked = {"roles": ti.attention.NormAttention()}
    >>> run = ti.measure(ti.load_model(), ["The Nile flows north."], asked, progress=False)
    >>> run["roles"]["update_variation"].dims
    ('prompt', 'block', 'head')
    """

    first = ("norm_rank_correlation", "update_variation")
    fields = {
        "norm_rank_correlation": Field(
            ("prompt", "block"), "rank correlation of norm and attention received", "1", SUN,
            short="rank correlation of norm and attention", range=(-1, 1), chance=0,
        ),
        "update_variation": Field(
            ("prompt", "block", "head"), "relative variation of the update from position 0", "1", SUN,
            short="variation of the update from position 0", range=(0, None),
        ),
    }  # fmt: skip
    block_site = "pattern"
    streams = True

    def __init__(self, blocks: Iterable[int] | None = None) -> None:
        super().__init__()
        self.blocks = blocks

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the patterns of the blocks, and the stream that enters each."""
        return [Site(name, b) for b in self.at_blocks(info) for name in ("resid", "pattern")]

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check that some prompt is long enough."""
        super().begin(info, prompts)
        if max(prompts.lengths) < SHORTEST:
            raise ValueError(f"the longest prompt has {max(prompts.lengths)} tokens: {SHORTEST} or more are needed")

    def look(self, batch: Batch, site: Site, value: torch.Tensor) -> torch.Tensor:
        """Reduce a stream to norms; a pattern to what each position receives, and mean and spread over queries."""
        if site.name == "resid":
            return torch.linalg.vector_norm(value.float(), dim=-1).masked_fill(~batch.mask, 0)
        received = attention_received(value, batch.mask).mean(1).masked_fill(~batch.mask, 0)
        asked = batch.mask[:, None, 2:].double()
        n = asked.sum(-1).clamp_min(1)
        taken = value[:, :, 2:, 0].double() * asked  # the value of position 0 is one vector, so its weights say all
        mean = taken.sum(-1) / n
        spread = (((taken - mean[..., None]) * asked).square().sum(-1) / n).sqrt()
        return torch.cat([received, mean, spread], 1)

    def update(self, batch: Batch) -> None:
        """Take correlations and variations of a batch."""
        rank, varies = [], []
        lengths = torch.tensor(batch.lengths, device=batch.device, dtype=torch.int64)
        for b in self.at_blocks():
            norms, seen = (batch.seen(self, Site(name, b)) for name in ("resid", "pattern"))
            received, rest = seen.split((batch.ids.shape[1], seen.shape[1] - batch.ids.shape[1]), 1)
            mean, spread = rest.chunk(2, 1)
            rank.append(rank_correlation(norms, received, batch.mask))
            varies.append(spread / mean)
        short = (lengths < SHORTEST)[:, None]
        self.keep(
            batch, norm_rank_correlation=torch.stack(rank, 1).masked_fill(short, torch.nan),
            update_variation=torch.stack(varies, 1).masked_fill(short[..., None], torch.nan),
        )  # fmt: skip


def shown_blocks(model: Model) -> tuple[tuple[int, ...], dict[str, str]]:
    """Return the blocks whose attention weights can be looked at, and what a result says of the others.

    Raises
    ------
    ValueError
        If there are none.
    """
    shown: tuple[int, ...] = getattr(model, "offered", {}).get("pattern") or tuple(range(model.info.n_layers))
    model.check([Site("pattern", b) for b in shown])
    if not (others := sorted({*range(model.info.n_layers)} - {*shown})):
        return shown, {}
    return shown, {"blocks_without_pattern": f"{numbered(others)}: no attention weights to look at there (NaN)"}


@checked(sets=mapping(), rule=one_of(*RULES))
@steady
def massive_roles(
    model: Model, prompts: Prompts, sets: dict | None = None, *, rule: str = "norm", factor: float = 10.0,
    **run: Unpack[Runs],
) -> xr.Dataset:  # fmt: skip
    """Say which tokens carry massive activations and whether large norms go with attention received.

    Parameters
    ----------
    model, prompts
        What to run, and on what.
    sets : dict, optional
        Named sets of tokens, see `AttentionMass`; give fillers and ``first filler`` of inserted items, for example.
    rule, factor
        What counts as massive, see `tokinterp.kernels.massive.massive_rows`.
    **run
        ``batch_tokens``, ``store``, ``share``, ...: see `tokinterp.run.conditions.Runs`.

    Returns
    -------
    xarray.Dataset
        ``massive_share`` by layer and ``key_set``: share of the tokens of a set that are massive, of all prompts
        together.  ``norm_rank_correlation`` and ``update_variation``, see `NormAttention`: NaN in blocks of a hybrid
        that have no attention weights (named in ``blocks_without_pattern``).

    Raises
    ------
    ValueError
        For an unknown rule or set, or if every prompt is shorter than 4 tokens.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [t.text for t in ti.bundled_texts("article")[:2]]
    >>> prompts = ti.Prompts.from_texts(texts, model, max_tokens=48)
    >>> "layer" in ti.attention.massive_roles(model, prompts).dims
    True
    """
    sets = check_sets("sets", SETS if sets is None else sets)
    shown, note = shown_blocks(model)
    asked = {"sizes": SetNorms(sets, rule=rule, factor=factor), "roles": NormAttention(shown)}
    found = compared(model, {"whole": Condition(prompts)}, asked, **run)
    if found is None:
        return xr.Dataset()
    n = model.info.n_layers
    each = found["sizes"]["massive_share"].isel(condition=0).transpose("prompt", "layer", "key_set").values
    members = np.add.reduceat(resolve(prompts, sets).astype(int), prompts.starts[:-1], axis=1).T  # (prompt, set)
    finite = np.isfinite(each).any((1, 2))  # the others are left out
    counts = members[finite].sum(0)
    with np.errstate(invalid="ignore"):
        share = np.rint(np.nan_to_num(each[finite]) * members[finite, None]).sum(0) / counts
    roles = found["roles"].isel(condition=0).reindex(block=np.arange(n))
    rank = roles["norm_rank_correlation"].transpose("prompt", "block").values
    varies = roles["update_variation"].transpose("prompt", "block", "head").values
    data = {
        "massive_share": variable(("layer", "key_set"), share, "share of the set's tokens that are massive", "1", SUN),
        "n_tokens": variable("key_set", counts.astype(int), "tokens of the set", "1"),
        "norm_rank_correlation": variable(
            ("prompt", "block"), rank, "rank correlation of norm and attention received", "1", SUN),
        "update_variation": variable(
            ("prompt", "block", "head"), varies, "relative variation of the update from position 0", "1", SUN),
    }  # fmt: skip
    coords = {
        "prompt": variable("prompt", np.arange(len(prompts)), "number of the prompt in the input", "1"),
        "key_set": variable("key_set", np.array(list(sets)), "set of tokens", "1"),
        "head": variable("head", np.arange(model.info.n_heads), "attention head", "1"),
        **block_coords(range(n), model.info, "pattern"),
        **{k: v for k, v in layer_coords(range(n + 1), model.info).items() if k != "site"},
    }
    settings = {"sets": {k: repr(v) for k, v in sets.items()}, "rule": rule, "factor": factor}
    return stamped(xr.Dataset(data, coords, note), "massive_roles", model, prompts, settings)


CONTROL = ", ordinary rows"
"""Behind the name of an intervention: done to as many rows that are neither massive nor special tokens."""


@checked(rule=one_of(*RULES))
@steady
def massive_effects(
    model: Model, prompts: Prompts, *, rule: str = "norm", factor: float = 10.0, seed: int = 0, **run: Unpack[Runs]
) -> xr.Dataset:
    """Set massive entries to zero, or to their mean, at the layer where they first appear.

    Parameters
    ----------
    model, prompts
        At least two prompts, so that a mean over them is a mean.
    rule, factor
        See `tokinterp.kernels.massive.massive_rows`.
    seed : int
        Of the ordinary rows of the control.
    **run
        ``batch_tokens``, ``store``, ``share``, ...: see `tokinterp.run.conditions.Runs`.

    Returns
    -------
    xarray.Dataset
        By ``prompt``: ``loss``; by ``intervention`` ``loss_change``; ``onset``, the first layer with massive rows;
        ``n_massive`` by prompt.  ``sink_mass`` by prompt and block, the mean attention of later positions to the first
        token over heads, and by intervention ``sink_change``: whether attention sinks need the massive entries; neither
        where a model shows no attention weights. The interventions: the massive channels of the massive rows to zero,
        or to their mean over all of these rows; and the controls of both, the same channels of as many ordinary rows of
        the prompt, drawn from those that are neither massive nor special tokens, to zero or to the mean over *these*
        rows. A prompt without massive rows changes by 0; one without as many ordinary rows is NaN in the controls.
        Without any massive row ``onset``, ``loss_change`` and ``sink_change`` are NaN, as the attribute ``note`` says.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [t.text for t in ti.bundled_texts("article")[:2]]
    >>> prompts = ti.Prompts.from_texts(texts, model, max_tokens=48)
    >>> "loss_change" in ti.attention.massive_effects(model, prompts)
    True
    """
    onset, marked, channels, means = _onset(model, prompts, rule, factor, run.get("batch_tokens"), seed)
    names = ("zero", "mean", f"zero{CONTROL}", f"mean{CONTROL}")
    conditions = {"whole": Condition(marked)}
    for name in names if onset is not None else ():
        which = "ordinary" if name.endswith(CONTROL) else "massive"
        value = means[which] if name.startswith("mean") else (0.0,) * len(channels)
        edit = apply(Site("resid", int(onset or 0)), Channels(channels, value), which)
        conditions[name] = Condition(marked, [edit])
    shown = getattr(model, "offered", {}).get("pattern", ()) if max(prompts.lengths) > 1 else ()
    asked = {"loss": TokenLoss(), **({"sink": FirstTokenAttention(shown)} if shown else {})}
    found = compared(model, conditions, asked, **run)
    if found is None:
        return xr.Dataset()
    loss = found["loss"]["loss"].transpose("condition", "prompt").values
    n_massive, n_ordinary = (
        np.add.reduceat(marked.marks[k].astype(int), marked.starts[:-1]) for k in ("massive", "ordinary")
    )

    def changes(values: np.ndarray) -> np.ndarray:
        out = np.full((len(names), *values.shape[1:]), np.nan)
        if onset is not None:
            out[:] = values[1:] - values[0]
            out[2:, n_ordinary < n_massive] = np.nan
        return out

    data = {
        "loss": variable("prompt", loss[0], "cross-entropy of the next token", "nat"),
        "loss_change": variable(("intervention", "prompt"), changes(loss), "change of the loss", "nat", SUN),
        "n_massive": variable("prompt", n_massive, "massive rows at the onset layer", "1"),
        "onset": variable((), np.nan if onset is None else onset, "first layer with massive rows", "1"),
    }
    if shown:
        sink = found["sink"]["first_token_mass"].mean("head").transpose("condition", "prompt", "block").values
        data["sink_mass"] = variable(
            ("prompt", "block"), sink[0], "attention of later positions to the first token", "1", SPIKES, range=(0, 1)
        )
        data["sink_change"] = variable(
            ("intervention", "prompt", "block"), changes(sink), "change of the attention to the first token", "1",
            SPIKES,
        )  # fmt: skip
    coords = {
        "prompt": variable("prompt", np.arange(len(prompts)), "number of the prompt in the input", "1"),
        "intervention": variable("intervention", np.array(names), "what is done to massive entries", "1"),
        **(block_coords(shown, model.info, "pattern") if shown else {}),
    }
    note = f"no row is massive by the rule {rule}" if onset is None else f"channels {list(channels)}"
    settings = {"rule": rule, "factor": factor}
    return stamped(xr.Dataset(data, coords, {"note": note}), "massive_effects", model, prompts, settings, seed)


@dataclass(frozen=True)
class Channels:
    """Function that gives some channels of all rows these values, for `tokinterp.edits.apply`."""

    channels: tuple[int, ...]
    values: tuple[float, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return (prompt, position, d_model) activations, changed."""
        out = x.clone()
        out[..., list(self.channels)] = torch.tensor(self.values, dtype=x.dtype, device=x.device)
        return out


def _onset(
    model: Model, prompts: Prompts, rule: str, factor: float, batch_tokens: int | None, seed: int
) -> tuple[int | None, Prompts, tuple[int, ...], dict[str, tuple[float, ...]]]:
    """Return the first layer with massive rows, where these and as many ordinary ones are, channels, and their means.

    The rows are marks of the prompts, ``massive`` and ``ordinary``; the means are those of each over the channels.
    """
    layers = range(1, model.info.n_layers + 1)
    hot = np.zeros((len(layers), prompts.n_tokens), dtype=bool)
    for batch in stream(model, prompts, resid(layers), batch_tokens=batch_tokens):
        rows = torch.stack([massive_rows(batch.resid(n), batch.mask, rule, factor) for n in layers], -1)
        hot[:, batch.tokens.place] = batch.flatten(rows).cpu().numpy().T
    marks = {name: np.zeros(prompts.n_tokens, dtype=bool) for name in ("massive", "ordinary")}
    if not hot.any():
        return None, mark(prompts, **marks), (), {}
    onset = layers[int(hot.any(1).argmax())]
    found: list[torch.Tensor] = []
    held: dict[str, list[torch.Tensor]] = {name: [] for name in marks}
    for batch in stream(model, prompts, resid([onset]), batch_tokens=batch_tokens):
        x = batch.resid(onset)
        massive = massive_rows(x, batch.mask, rule, factor)
        table = massive_entries(x, batch.ids, batch.prompt_numbers, measure_sizes(x, batch.mask), massive, rule, 20)
        found.append(table.channel[table.channel >= 0].cpu())
        for name, where in (("massive", massive), ("ordinary", _ordinary(batch, massive, seed))):
            marks[name][batch.tokens.place] = batch.flatten(where).cpu().numpy()
            held[name].append(x[where].double().cpu())
    channels = tuple(torch.cat(found).unique().tolist())
    means = {name: tuple(torch.cat(rows)[:, list(channels)].mean(0).tolist()) for name, rows in held.items()}
    return onset, mark(prompts, **marks), channels, means


def _ordinary(batch: Batch, massive: torch.Tensor, seed: int) -> torch.Tensor:
    """Return (prompt, position) bool: as many rows as are massive, at random, none of them massive or special.

    Fewer where a prompt has not as many; the draw depends on the ids of a prompt alone.
    """
    closed = massive | batch.special | ~batch.mask
    rank = _noise(batch.ids, batch.mask, seed).masked_fill(closed, 3.0).argsort(1).argsort(1)
    return (rank < massive.sum(1, keepdim=True)) & ~closed


SPIKES = "Sun, Canziani, LeCun and Zhu 2026, arXiv 2603.05498"
