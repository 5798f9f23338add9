"""A token at the end of each chunk that may read only its chunk: how much of the chunk later tokens find in it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch
import xarray as xr

from ..behaviour.loss import TokenLoss
from ..kernels.massive import RULES
from ..models.steady import steady
from ..results.dataset import block_coords, bound_coord, layer_coords, variable
from ..results.documents import groups_of_prompts, interval_name
from ..results.stamp import stamped
from ..run.conditions import Condition, Runs, compared
from ..settings import checked, count, one_of, several, string
from ..stats.explained import share_explained
from ..text.items import UNITS, Tokens
from ..text.marks import mark
from ..text.prompts import Prompts
from .masks import keep_only
from .mass import AttentionMass
from .set_norms import SUN, SetNorms

if TYPE_CHECKING:
    from ..models.base import Model


@checked(kinds=several(string, 1) | string, chunk=count(2))
@steady
def sentinels(
    model: Model,
    prompts: Prompts,
    *,
    kinds: Sequence[str] = ("newlines", "dots", "words"),
    chunk: int = 32,
    seed: int = 0,
    **run: Unpack[Runs],
) -> xr.Dataset:
    """Insert a token behind every chunk of a text and measure what it holds.

    The frozen analogue of <SR> (Luo et al. 2024, arXiv 2406.10985), which is trained: expect little.

    Parameters
    ----------
    model : Model
    prompts : Prompts
        Beginning with BOS; whole chunks of them are used.
    kinds : sequence of str
        What is inserted: the last token of a kind of filler, random words as control.
    chunk : int
        Tokens of a chunk.
    seed : int
        Of random words.
    **run
        ``batch_tokens``, ``store``, ``share``, ...: see `tokinterp.run.conditions.Runs`.

    Returns
    -------
    xarray.Dataset
        By prompt: ``loss``, cross-entropy of the tokens from the second chunk on, and ``hidden_change``, its change
        when each token sees only its own chunk and the first token. By ``filler`` too: ``sentinel_change``, its change
        by the insertion of sentinels; ``kept_change``, when the chunks before are hidden and their sentinels not;
        ``enrichment`` of attention on sentinels over chance, net of sink and self, mean over heads. By ``filler``
        alone: ``gap_left`` = sum of kept_change over the prompts / sum of hidden_change, with ``gap_left_interval``, 95
        %, documents (else prompts) drawn: 0 if sentinels hold all that earlier chunks gave, 1 if nothing; NaN
        where hiding the chunks costs nothing. (A mean of ratios of single prompts would be ruled by those that lose
        next to nothing.) Only tokens predicted from a token of the text count, the same in all conditions.

    Raises
    ------
    ValueError
        If no prompt has two chunks, the prompts have no BOS, or the context is too short.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [t.text for t in ti.bundled_texts("article")[:2]]
    >>> prompts = ti.Prompts.from_texts(texts, model, max_tokens=40)
    >>> ti.attention.sentinels(model, prompts, kinds=["dots"], chunk=8).attrs["measurement"]
    'sentinels'
    """
    if not prompts.bos:
        raise ValueError("prompts: they do not begin with BOS, which hidden chunks leave visible: use bos=True")
    kinds = list(dict.fromkeys([kinds] if isinstance(kinds, str) else kinds))
    room = (model.info.max_tokens - 1) // (chunk + 1)
    whole = [min((n - 1) // chunk, room) for n in prompts.lengths]
    rows = [i for i, n in enumerate(whole) if n >= 2]
    if not rows:
        raise ValueError(
            f"chunk={chunk}: no prompt has two chunks of {chunk} tokens (the longest has {max(prompts.lengths)}, the "
            "context is "
            f"{model.info.max_tokens}): give longer prompts or a smaller chunk="
        )
    texts = [np.asarray(prompts.ids(i))[: 1 + chunk * whole[i]] for i in rows]
    found = compared(
        model, _conditions(model, texts, kinds, chunk, seed),
        {"loss": TokenLoss("counted"),
         "mass": AttentionMass({"sentinels": "sentinel"}, {"text": "text"}, value_weighted=False)}, **run,
    )  # fmt: skip
    if found is None:
        return xr.Dataset()
    loss = found["loss"]["loss"].transpose("prompt", "condition")
    full = loss.sel(condition="whole").values
    lost = loss.sel(condition="hidden").values - full
    read, only = (loss.sel(condition=[f"{what}: {k}" for k in kinds]).values - full[:, None] for what in (READ, ONLY))
    mass = found["mass"]["net_enrichment"].sel(condition=[f"{READ}: {k}" for k in kinds])
    enrichment = mass.isel(query_set=0, key_set=0).mean(("block", "head")).transpose("prompt", "condition").values
    size = np.broadcast_to(lost[:, None], only.shape)
    document, groups = groups_of_prompts(prompts, np.array(rows, dtype=np.int64))
    fine = np.isfinite(lost) & np.isfinite(only).all(1)  # sums of the others, where a prompt is not finite
    document = document[fine]
    held, *bounds = share_explained(only[fine], size[fine], document, seed=seed)  # 1 - sum of kept / sum of size
    gap = np.where(lost[fine].sum() > 0, 1 - np.stack([held, bounds[1], bounds[0]]), np.nan)
    each, what = ("prompt", "filler"), "share of the hidden information that sentinels do not hold"
    over = interval_name(what, 0.95, groups, len(np.unique(document)))
    data = {
        "loss": variable("prompt", full, "cross-entropy of the next token", "nat"),
        "hidden_change": variable("prompt", lost, "change of the loss with earlier chunks hidden", "nat"),
        "sentinel_change": variable(each, read, "change of the loss by sentinels", "nat", SR),
        "kept_change": variable(each, only, "change with only sentinels of earlier chunks", "nat", SR),
        "gap_left": variable("filler", gap[0], what, "1", SR),
        "gap_left_interval": variable(("bound", "filler"), gap[1:], over, "1"),
        "enrichment": variable(each, enrichment, "attention on sentinels over chance, net of sink", "1"),
    }
    coords = {
        "prompt": variable("prompt", np.array(rows), "number of the prompt in the input", "1"),
        "filler": variable("filler", np.array(kinds), "what is inserted", "1"),
        "bound": bound_coord(),
    }
    attrs = {"n_groups": len(np.unique(document)), "groups": groups}
    settings = {"kinds": kinds, "chunk": chunk}
    return stamped(xr.Dataset(data, coords, attrs), "sentinels", model, prompts, settings, seed)


READ, ONLY = "sentinels", "only sentinels"


def _conditions(
    model: Model, texts: Sequence[np.ndarray], kinds: Sequence[str], chunk: int, seed: int
) -> dict[str, Condition]:
    """Return the texts, those with earlier chunks hidden, and both with sentinels of each kind."""
    bare = _marked(model, [(ids, np.zeros(len(ids), dtype=bool)) for ids in texts], chunk, chunk)
    tokens, own = Tokens(model), partial(own_chunk, size=chunk)
    out = {"whole": Condition(bare), "hidden": Condition(bare, [keep_only(partial(own, sentinel=False))])}
    for kind in kinds:
        made = _marked(model, _insert(texts, tokens, kind, chunk, seed), chunk, chunk + 1)
        out[f"{READ}: {kind}"] = Condition(made, [keep_only(partial(reads_own_chunk, size=chunk))])
        out[f"{ONLY}: {kind}"] = Condition(made, [keep_only(partial(own, sentinel=True))])
    return out


def _marked(model: Model, texts: Sequence[tuple[np.ndarray, np.ndarray]], size: int, period: int) -> Prompts:
    """Return prompts with marks: sentinels, the text, and the tokens of it whose loss counts.

    These are predicted by a token of the same chunk, which is not the first.
    """
    made, sentinel = Prompts.from_ids([ids for ids, _ in texts], model), np.concatenate([flags for _, flags in texts])
    before = np.concatenate([np.arange(n) for n in made.lengths]) - 2  # places behind BOS of what predicts a token
    counted = (before >= period) & (before % period < size - 1)
    return mark(made, sentinel=sentinel, text=~sentinel, counted=counted)


SR = "Luo et al. 2024, arXiv 2406.10985"


def _insert(
    texts: Sequence[np.ndarray], tokens: Tokens, kind: str, chunk: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return ids with a sentinel behind each chunk, and which they are."""
    out = []
    for number, ids in enumerate(texts):
        n = (len(ids) - 1) // chunk
        if kind == "words":
            chosen = np.random.default_rng([seed, number]).choice(tokens.words, n)
        else:
            chosen = np.full(n, tokens.unit(UNITS.get(kind, kind))[-1])
        body = np.concatenate([ids[1:].reshape(n, chunk), chosen[:, None]], axis=1)
        mark = np.zeros(body.shape, dtype=bool)
        mark[:, -1] = True
        out.append((np.append(ids[:1], body.ravel()), np.append(False, mark.ravel())))
    return out


def _layout(ids: torch.Tensor, period: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (position,) number of the chunk, -1 for the first token, and whether a sentinel stands there."""
    place = torch.arange(ids.shape[1], device=ids.device, dtype=torch.int64) - 1
    return torch.div(place, period, rounding_mode="floor"), (place >= 0) & (place % period == size)


def own_chunk(ids: torch.Tensor, mask: torch.Tensor, size: int, sentinel: bool) -> torch.Tensor:
    """Return the edges of tokens that see their own chunk, the first token and, with sentinels, all of those."""
    chunk, mark = _layout(ids, size + 1 if sentinel else size, size)
    n = len(chunk)
    causal = torch.ones(n, n, dtype=torch.bool, device=ids.device).tril()
    keep = (chunk[:, None] == chunk[None, :]) | (chunk[None, :] < 0)
    if sentinel:
        keep = keep | (mark[None, :] & ~mark[:, None])
    return (keep & causal) & mask[:, None, :] & mask[:, :, None]


def reads_own_chunk(ids: torch.Tensor, mask: torch.Tensor, size: int) -> torch.Tensor:
    """Return the edges of a text in which only sentinels are restricted, to their chunk."""
    chunk, mark = _layout(ids, size + 1, size)
    n = len(chunk)
    causal = torch.ones(n, n, dtype=torch.bool, device=ids.device).tril()
    keep = ~mark[:, None] | (chunk[:, None] == chunk[None, :])
    return (keep & causal) & mask[:, None, :] & mask[:, :, None]


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

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [t.text for t in ti.bundled_texts("article")[:2]]
    >>> prompts = ti.Prompts.from_texts(texts, model, max_tokens=48)
    >>> "loss_change" in ti.attention.registers(model, prompts, n_registers=[1])
    True
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


REGISTERS = "Darcet et al. 2023, arXiv 2309.16588"
SINKS = "Xiao et al. 2023, arXiv 2309.17453"
