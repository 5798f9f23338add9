"""Massive activations: what they are worth, who carries them, and how they go with attention sinks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch
import xarray as xr

from ..behaviour.loss import TokenLoss
from ..kernels.massive import RULES, check_rule, massive_entries, massive_rows, measure_sizes
from ..models.steady import steady
from ..results.dataset import block_coords, layer_coords, variable
from ..results.stamp import finish, stamped
from ..run.conditions import Condition, Runs, compared
from ..run.edits import apply
from ..run.sites import Site, resid
from ..run.stream import capture, stream
from ..settings import checked, count, mapping, one_of, several
from ..stats.tests import spearman
from ..text.items import Tokens
from ..text.marks import mark
from ..text.prompts import Prompts
from .blocks import shown_blocks
from .first_token import FirstTokenAttention
from .kernels import attention_received
from .masks import _noise
from .mass import AttentionMass
from .set_norms import SETS, SUN, SetNorms
from .token_sets import check_sets, padded, resolve

if TYPE_CHECKING:
    from ..models.base import Model
    from ..run.batch import Batch


@checked(sets=mapping())
@steady
def massive_roles(
    model: Model, prompts: Prompts, sets: dict | None = None, *, rule: str = "norm", factor: float = 10.0
) -> xr.Dataset:
    """Say which tokens carry massive activations and whether large norms go with attention received.

    Parameters
    ----------
    model, prompts
        Prompts are run one at a time; one block's pattern is held at once.
    sets : dict, optional
        Named sets of tokens, see `AttentionMass`; give fillers and ``first filler`` of inserted items, for example.
    rule, factor
        What counts as massive, see `tokinterp.kernels.massive.massive_rows`.

    Returns
    -------
    xarray.Dataset
        ``massive_share`` by layer and ``key_set``: share of the tokens of a set that are massive.
        ``norm_rank_correlation`` by prompt and block: Spearman's, of the norm of a token entering the block and the
        attention it receives, mean over heads. ``update_variation`` by prompt, block and head: how much what
        queries take from position 0 varies over queries, ||u_q - mean u|| / ||mean u|| as root mean square, from the
        third query on; a constant update is a bias. Both are NaN in blocks of a hybrid that have no attention
        weights (named in ``blocks_without_pattern``).

    Raises
    ------
    ValueError
        For an unknown rule or set, or if every prompt is shorter than 4 tokens.
    """
    check_rule(rule)
    sets = check_sets("sets", SETS if sets is None else sets)
    if max(prompts.lengths) < 4:
        raise ValueError(f"the longest prompt has {max(prompts.lengths)} tokens: 4 or more are needed")
    packed = resolve(prompts, sets)
    n = model.info.n_layers
    shown, note = shown_blocks(model)
    hits, counts = np.zeros((n + 1, len(sets))), np.zeros(len(sets))
    rank = np.full((len(prompts), n), np.nan)
    varies = np.full((len(prompts), n, model.info.n_heads), np.nan)
    norms: dict[int, np.ndarray] = {}
    for i in range(len(prompts)):
        norms.clear()
        batch = capture(model, prompts, [i], resid([0]))
        member = padded(packed, batch)[0]
        counts += member.sum(1).cpu().numpy()

        def look(batch: Batch, site: Site, value: torch.Tensor, i: int = i, member=member) -> None:
            if site.name == "resid":
                rows = massive_rows(value, batch.mask, rule, factor)[0]
                hits[site.at] += (member & rows).sum(1).cpu().numpy()
                norms[site.at] = torch.linalg.vector_norm(value[0].float(), dim=-1).cpu().numpy()
            elif value.shape[2] >= 4:
                received = attention_received(value).mean(1)[0].cpu().numpy()
                rank[i, site.at] = spearman(norms[site.at], received)
                taken = value[0, :, 2:, 0].double()  # the value of position 0 is one vector, so its weights say all
                varies[i, site.at] = (taken.std(-1, unbiased=False) / taken.mean(-1)).cpu().numpy()

        sites = [*resid(range(n + 1)), *(Site("pattern", b) for b in shown)]
        capture(model, prompts, [i], sites, consume=look)
    with np.errstate(invalid="ignore"):
        share = hits / counts
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
    settings = {
        "sets": {k: repr(v) for k, v in sets.items()},
        "rule": rule,
        "factor": factor,
        "questions": prompts.hash,
    }
    return finish(xr.Dataset(data, coords), model, "massive_roles", settings).assign_attrs(note)


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


@checked(n_registers=several(count(), 1), rule=one_of(*RULES))
@steady
def registers(
    model: Model,
    prompts: Prompts,
    *,
    n_registers: Sequence[int] = (1, 2, 4),
    kind: str = "newlines",
    behind_bos: bool = False,
    rule: str = "norm",
    factor: float = 10.0,
    **run: Unpack[Runs],
) -> xr.Dataset:
    """Prepend blank tokens and see whether sink, massive activations and norms move to them, and what that costs.

    The analogue of registers (Darcet et al. 2023, arXiv 2309.16588) in a frozen language model, which was not trained
    with them.

    Parameters
    ----------
    model, prompts
        Texts that leave room for the registers in the context.
    n_registers : sequence of int
        Grid of r; 0, the text as it is, is always added.
    kind : str
        Blank token that is repeated, see `build_items`.
    behind_bos : bool
        Whether registers follow BOS, which keeps the first place, instead of coming before everything.
    rule, factor
        What counts as massive, see `tokinterp.kernels.massive.massive_rows`.
    **run
        ``batch_tokens``, ``store``, ``share``, ...: see `tokinterp.run.conditions.Runs`.

    Returns
    -------
    xarray.Dataset
        By ``prompt``, ``n_fillers`` (r) and ``key_set`` (registers, the text's first token, its others): ``mass`` by
        block, mean attention of the text's tokens but the first on the set; ``massive_share`` by layer of its tokens;
        ``relative_norm`` by layer, mean norm over that of the text's others. Registers at r = 0 are NaN, their mass 0.
        ``loss_change`` of the text's tokens but the first.

    Raises
    ------
    ValueError
        Without room, for a blank that merges with itself, or ``behind_bos`` without BOS.
    """
    grid = sorted({0, *(int(r) for r in n_registers)})
    if behind_bos and not prompts.bos:
        raise ValueError("behind_bos=True: the prompts do not begin with BOS")
    if max(prompts.lengths) + grid[-1] > model.info.max_tokens:
        raise ValueError(
            f"n_registers={grid[-1]}: {grid[-1]} registers before {max(prompts.lengths)} tokens: {model.info.id} has "
            "room for "
            f"{model.info.max_tokens}; give shorter prompts"
        )
    tokens, at = Tokens(model), 1 if behind_bos else 0
    conditions = {}
    for r in grid:
        blank = tokens.fillers(kind, r, np.random.default_rng(0))
        made = Prompts.from_ids([np.insert(prompts.ids(i), at, blank) for i in range(len(prompts))], model)
        place = np.concatenate([np.arange(k) for k in made.lengths])
        start, register = place == (0 if behind_bos else r), (place >= at) & (place < at + r)
        conditions[str(r)] = Condition(mark(made, register=register, start=start, rest=~register & ~start))
    sets = {"registers": "register", "first": "start", "other": "rest"}
    asked = {
        "mass": AttentionMass(sets, {"text": "rest"}, value_weighted=False),
        "sizes": SetNorms(sets, rule=rule, factor=factor), "loss": TokenLoss("rest"),
    }  # fmt: skip
    found = compared(model, conditions, asked, **run)
    if found is None:
        return xr.Dataset()
    mass = found["mass"]["mass"].isel(query_set=0).mean("head")
    norm, loss = found["sizes"]["norm"], found["loss"]["loss"].transpose("condition", "prompt").values
    by, block = (("n_fillers", "prompt", d, "key_set") for d in ("layer", "block"))

    def ordered(values: xr.DataArray, dims: tuple[str, ...]) -> np.ndarray:
        return values.transpose("condition", *dims[1:]).values

    data = {
        "mass": variable(block, ordered(mass, block), "mean attention of the text on the set", "1", SINKS),
        "massive_share": variable(
            by, ordered(found["sizes"]["massive_share"], by), "share of the set's tokens that are massive", "1", SUN
        ),
        "relative_norm": variable(
            by, ordered(norm / norm.sel(key_set="other"), by), "mean norm over that of the text's other tokens", "1",
            REGISTERS,
        ),
        "loss": variable("prompt", loss[0], "cross-entropy of the text's tokens, no registers", "nat"),
        "loss_change": variable(("n_fillers", "prompt"), loss - loss[0], "change of the loss", "nat", REGISTERS),
    }  # fmt: skip
    n = model.info.n_layers
    coords = {
        "prompt": variable("prompt", np.arange(len(prompts)), "number of the prompt in the input", "1"),
        "n_fillers": variable("n_fillers", np.array(grid), "registers", "token"),
        "key_set": variable("key_set", np.array(list(sets)), "set of tokens", "1"),
        **block_coords(range(n), model.info, "pattern"),
        **{k: v for k, v in layer_coords(range(n + 1), model.info).items() if k != "site"},
    }
    settings = {"n_registers": grid, "kind": kind, "behind_bos": behind_bos, "rule": rule, "factor": factor}
    return stamped(xr.Dataset(data, coords), "registers", model, prompts, settings)


SPIKES = "Sun, Canziani, LeCun and Zhu 2026, arXiv 2603.05498"
REGISTERS = "Darcet et al. 2023, arXiv 2309.16588"
SINKS = "Xiao et al. 2023, arXiv 2309.17453"
