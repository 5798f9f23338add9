"""Massive activations: what they are worth, who carries them, and how they go with attention sinks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from ..kernels.massive import check_rule, massive_entries, massive_rows, measure_sizes
from ..models.steady import steady
from ..results.dataset import block_coords, layer_coords, variable
from ..results.stamp import finish
from ..run.edits import replace
from ..run.engine import measure
from ..run.sites import Site, resid
from ..run.stream import capture
from ..settings import checked, count, mapping, several
from ..stats.tests import spearman
from ..text.items import Tokens
from ..text.prompts import Prompts
from .blocks import shown_blocks
from .kernels import attention_received
from .masks import _losses, _mean, _noise
from .mass import AttentionMass
from .token_sets import check_sets, padded, resolve

if TYPE_CHECKING:
    from ..models.base import Model
    from ..run.batch import Batch

SETS = {"first": "first", "separators": "separators", "other": "other"}
SUN = "Sun et al. 2024, arXiv 2402.17762"


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


@checked()
@steady
def massive_effects(
    model: Model, prompts: Prompts, *, rule: str = "norm", factor: float = 10.0, batch_tokens: int = 4096, seed: int = 0
) -> xr.Dataset:
    """Set massive entries to zero, or to their mean, at the layer where they first appear.

    Parameters
    ----------
    model, prompts
        At least two prompts, so that a mean over them is a mean.
    rule, factor
        See `tokinterp.kernels.massive.massive_rows`.
    batch_tokens : int
        Padded tokens per batch.
    seed : int
        Of the ordinary rows of the control.

    Returns
    -------
    xarray.Dataset
        By ``prompt``: ``loss``; by ``intervention`` ``loss_change``; ``onset``, the first layer with massive rows;
        ``n_massive`` by prompt.  The interventions: the massive channels of the massive rows to zero, or to their mean
        over all of these rows; and the controls of both, the same channels of as many ordinary rows of the prompt,
        drawn from those that are neither massive nor special tokens, to zero or to the mean over *these* rows.
        A prompt without massive rows changes by 0; one without as many ordinary rows is NaN in the controls.  Without
        any massive row ``onset`` and ``loss_change`` are NaN, as the attribute ``note`` says.
    """
    check_rule(rule)
    onset, means, channels = _onset(model, prompts, rule, factor, batch_tokens, seed)
    names = ("zero", "mean", f"zero{CONTROL}", f"mean{CONTROL}")
    change = np.full((len(names), len(prompts)), np.nan)
    loss, count = np.full(len(prompts), np.nan), np.zeros(len(prompts), dtype=int)
    for rows in prompts.batches(batch_tokens, model=model):
        plain = _losses(model, prompts, rows, ())
        real = torch.from_numpy(prompts.padded(rows)[1]).to(plain.device)[:, 1:]
        loss[rows] = _mean(plain, real)
        if onset is None:
            continue
        batch = capture(model, prompts, rows, resid([onset]))
        x, site = batch.resid(onset), Site("resid", onset)
        massive = massive_rows(x, batch.mask, rule, factor)
        count[rows] = massive.sum(1).cpu().numpy()
        ordinary = _ordinary(batch, massive, seed)
        lacking = (ordinary.sum(1) < massive.sum(1)).cpu().numpy()
        for i, name in enumerate(names):
            control = name.endswith(CONTROL)
            where = ordinary if control else massive
            if not bool(massive.any()):
                change[i, rows] = 0.0
                continue
            value = x.clone()
            value[..., channels] = means[int(control)].to(x) if name.startswith("mean") else 0.0
            changed = _mean(_losses(model, prompts, rows, [replace(site, value, where)]) - plain, real)
            change[i, rows] = np.where(lacking, np.nan, changed) if control else changed
    data = {
        "loss": variable("prompt", loss, "cross-entropy of the next token", "nat"),
        "loss_change": variable(("intervention", "prompt"), change, "change of the loss", "nat", SUN),
        "n_massive": variable("prompt", count, "massive rows at the onset layer", "1"),
        "onset": variable((), np.nan if onset is None else onset, "first layer with massive rows", "1"),
    }
    coords = {
        "prompt": variable("prompt", np.arange(len(prompts)), "number of the prompt in the input", "1"),
        "intervention": variable("intervention", np.array(names), "what is done to massive entries", "1"),
    }
    note = f"no row is massive by the rule {rule}" if onset is None else f"channels {channels.tolist()}"
    settings = {"rule": rule, "factor": factor, "questions": prompts.hash}
    return finish(xr.Dataset(data, coords, {"note": note}), model, "massive_effects", settings, seed)


def _onset(
    model: Model, prompts: Prompts, rule: str, factor: float, batch_tokens: int, seed: int
) -> tuple[int | None, torch.Tensor, torch.Tensor]:
    """Return the first layer with massive rows, (2, channel) means of massive and ordinary rows, and the channels."""
    seen = np.zeros(model.info.n_layers + 1, dtype=bool)

    def look(batch: Batch, site: Site, value: torch.Tensor) -> None:
        seen[site.at] |= bool(massive_rows(value, batch.mask, rule, factor).any())

    for rows in prompts.batches(batch_tokens, model=model):  # all layers in one pass, one of them held at a time
        capture(model, prompts, rows, resid(range(1, len(seen))), consume=look)
    if not seen.any():
        return (
            None,
            torch.zeros(2, 0, dtype=torch.float64, device="cpu"),
            torch.zeros(0, dtype=torch.int64, device="cpu"),
        )
    onset = int(seen.argmax())
    found: list[torch.Tensor] = []
    held: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for rows in prompts.batches(batch_tokens, model=model):
        batch = capture(model, prompts, rows, resid([onset]))
        x = batch.resid(onset)
        massive = massive_rows(x, batch.mask, rule, factor)
        sizes = measure_sizes(x, batch.mask)
        table = massive_entries(x, batch.ids, batch.prompt_numbers, sizes, massive, rule, 20)
        found.append(table.channel[table.channel >= 0].cpu())
        for out, where in zip(held, (massive, _ordinary(batch, massive, seed)), strict=True):
            out.append(x[where].double().cpu())
    channels = torch.cat(found).unique()
    means = torch.stack([torch.cat(rows)[:, channels].mean(0) for rows in held])
    return onset, means, channels


def _ordinary(batch: Batch, massive: torch.Tensor, seed: int) -> torch.Tensor:
    """Return (prompt, position) bool: as many rows as are massive, at random, none of them massive or special.

    Fewer where a prompt has not as many; the draw depends on the ids of a prompt alone.
    """
    closed = massive | batch.special | ~batch.mask
    rank = _noise(batch.ids, batch.mask, seed).masked_fill(closed, 3.0).argsort(1).argsort(1)
    return (rank < massive.sum(1, keepdim=True)) & ~closed


@checked(n_registers=several(count(), 1))
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
    batch_tokens: int = 4096,
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
    batch_tokens : int
        Padded tokens per batch.

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
    check_rule(rule)
    grid = sorted({0, *(int(r) for r in n_registers)})
    if behind_bos and not prompts.bos:
        raise ValueError("behind_bos=True: the prompts do not begin with BOS")
    if max(prompts.lengths) + grid[-1] > model.info.max_tokens:
        raise ValueError(
            f"n_registers={grid[-1]}: {grid[-1]} registers before {max(prompts.lengths)} tokens: {model.info.id} has "
            "room for "
            f"{model.info.max_tokens}; give shorter prompts"
        )
    tokens, n = Tokens(model), model.info.n_layers
    names = ("registers", "first", "other")
    mass = np.zeros((len(grid), len(prompts), n, 3))
    size, hits = np.full((2, len(grid), len(prompts), n + 1, 3), np.nan)
    loss = np.zeros((len(grid), len(prompts)))
    at = 1 if behind_bos else 0
    for g, r in enumerate(grid):
        blank = tokens.fillers(kind, r, np.random.default_rng(0))
        made = Prompts.from_ids([np.insert(prompts.ids(i), at, blank) for i in range(len(prompts))], model)
        place = np.concatenate([np.arange(k) for k in made.lengths])
        first = place == (0 if behind_bos else r)
        register = (place >= at) & (place < at + r)
        sets = {"registers": register, "first": first, "other": ~register & ~first}
        held = {k: v for k, v in sets.items() if v.any()}
        asked = AttentionMass(held, {"text": sets["other"]}, value_weighted=False)
        found = measure(model, made, {"a": asked}, batch_tokens=batch_tokens, progress=False)["a"]["mass"]
        found = found.isel(query_set=0).mean("head").transpose("prompt", "block", "key_set")
        for j, name in enumerate(names):
            if name in held:
                mass[g, :, :, j] = found.sel(key_set=name)
        packed = np.stack(list(sets.values()))
        for rows in made.batches(batch_tokens, model=model):
            batch = capture(model, made, rows, resid(range(n + 1)))
            member = padded(packed, batch)
            count = member.sum(2).double()  # (prompt, set); 0 / 0 is NaN
            for layer in range(n + 1):
                x = batch.resid(layer)
                norm = torch.linalg.vector_norm(x.double(), dim=-1)
                for out, v in ((size, norm), (hits, massive_rows(x, batch.mask, rule, factor))):
                    out[g, rows, layer] = ((v[:, None] * member).double().sum(2) / count).cpu().numpy()
            counted = member[:, 2, 1:]
            counted = counted & batch.mask[:, 1:]
            loss[g, rows] = _mean(_losses(model, made, rows, ()), counted)
        size[g] /= size[g, :, :, 2:]
    by = ("n_fillers", "prompt", "layer", "key_set")
    data = {
        "mass": variable(
            ("n_fillers", "prompt", "block", "key_set"), mass, "mean attention of the text on the set", "1", SINKS
        ),
        "massive_share": variable(by, hits, "share of the set's tokens that are massive", "1", SUN),
        "relative_norm": variable(by, size, "mean norm over that of the text's other tokens", "1", REGISTERS),
        "loss": variable("prompt", loss[0], "cross-entropy of the text's tokens, no registers", "nat"),
        "loss_change": variable(("n_fillers", "prompt"), loss - loss[0], "change of the loss", "nat", REGISTERS),
    }
    coords = {
        "prompt": variable("prompt", np.arange(len(prompts)), "number of the prompt in the input", "1"),
        "n_fillers": variable("n_fillers", np.array(grid), "registers", "token"),
        "key_set": variable("key_set", np.array(names), "set of tokens", "1"),
        **block_coords(range(n), model.info, "pattern"),
        **{k: v for k, v in layer_coords(range(n + 1), model.info).items() if k != "site"},
    }
    settings = {"n_registers": grid, "kind": kind, "behind_bos": behind_bos, "rule": rule, "factor": factor,
                "questions": prompts.hash}  # fmt: skip
    return finish(xr.Dataset(data, coords), model, "registers", settings)


REGISTERS = "Darcet et al. 2023, arXiv 2309.16588"
SINKS = "Xiao et al. 2023, arXiv 2309.17453"
