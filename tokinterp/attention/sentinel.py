"""A token at the end of each chunk that may read only its chunk: how much of the chunk later tokens find in it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ..models.steady import steady
from ..results.dataset import bound_coord, variable
from ..results.documents import groups_of_prompts, interval_name
from ..results.stamp import finish
from ..run.engine import measure
from ..settings import checked, count, several, string
from ..stats.explained import share_explained
from ..text.items import UNITS, Tokens
from ..text.prompts import Prompts
from .masks import _losses, keep_only
from .mass import AttentionMass

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
    batch_tokens: int = 4096,
    seed: int = 0,
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
    batch_tokens, seed
        Padded tokens per batch; seed of random words.

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
    """
    if not prompts.bos:
        raise ValueError("prompts: they do not begin with BOS, which hidden chunks leave visible: use bos=True")
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
    plain = Prompts.from_ids(texts, model)
    full = _text_loss(model, plain, chunk, 0, (), batch_tokens)
    hidden = _text_loss(
        model, plain, chunk, 0, [keep_only(partial(own_chunk, size=chunk, sentinel=False))], batch_tokens
    )
    tokens = Tokens(model)
    shape = (len(rows), len(kinds))
    found = {n: np.full(shape, np.nan) for n in ("sentinel_change", "kept_change", "enrichment")}
    for j, kind in enumerate(kinds):
        marked = _insert(texts, tokens, kind, chunk, seed)
        made = Prompts.from_ids([ids for ids, _ in marked], model)
        see = {
            "sentinel_change": keep_only(partial(reads_own_chunk, size=chunk)),
            "kept_change": keep_only(partial(own_chunk, size=chunk, sentinel=True)),
        }
        for name, edit in see.items():
            found[name][:, j] = _text_loss(model, made, chunk, 1, [edit], batch_tokens) - full
        mark = np.concatenate([m for _, m in marked])
        asked = AttentionMass({"sentinels": mark}, {"text": ~mark}, value_weighted=False)
        ds = measure(model, made, {"a": asked}, edits=[see["sentinel_change"]], progress=False)["a"].to_dataset()
        found["enrichment"][:, j] = ds["net_enrichment"].mean(("block", "head")).values[:, 0, 0]
    lost = hidden - full
    kept, size = found["kept_change"], np.broadcast_to(lost[:, None], shape)
    document, groups = groups_of_prompts(prompts, np.array(rows, dtype=np.int64))
    held, *bounds = share_explained(kept, size, document, seed=seed)  # 1 - sum of kept / sum of size
    gap = np.where(lost.sum() > 0, 1 - np.stack([held, bounds[1], bounds[0]]), np.nan)
    each, what = ("prompt", "filler"), "share of the hidden information that sentinels do not hold"
    over = interval_name(what, 0.95, groups, len(np.unique(document)))
    data = {
        "loss": variable("prompt", full, "cross-entropy of the next token", "nat"),
        "hidden_change": variable("prompt", lost, "change of the loss with earlier chunks hidden", "nat"),
        "sentinel_change": variable(each, found["sentinel_change"], "change of the loss by sentinels", "nat", SR),
        "kept_change": variable(each, found["kept_change"], "change with only sentinels of earlier chunks", "nat", SR),
        "gap_left": variable("filler", gap[0], what, "1", SR),
        "gap_left_interval": variable(("bound", "filler"), gap[1:], over, "1"),
        "enrichment": variable(each, found["enrichment"], "attention on sentinels over chance, net of sink", "1"),
    }  # fmt: skip
    coords = {
        "prompt": variable("prompt", np.array(rows), "number of the prompt in the input", "1"),
        **(
            {"document": variable("prompt", document, "number of the document in the input", "1")}
            if groups == "documents"
            else {}
        ),
        "filler": variable("filler", np.array(list(kinds)), "what is inserted", "1"),
        "bound": bound_coord(),
    }
    settings = {"kinds": list(kinds), "chunk": chunk, "questions": prompts.hash}
    attrs = {"n_groups": len(np.unique(document)), "groups": groups}
    return finish(xr.Dataset(data, coords, attrs), model, "sentinels", settings, seed)


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


def _text_loss(model: Model, prompts: Prompts, size: int, extra: int, edits: Any, batch_tokens: int) -> np.ndarray:
    """Return (prompt,) loss of the tokens from the second chunk on that a token of the same chunk predicts."""
    out = np.zeros(len(prompts))
    period = size + extra
    for rows in prompts.batches(batch_tokens, model=model):
        losses = _losses(model, prompts, rows, edits)
        for r, loss in zip(rows, losses, strict=True):
            n = prompts.lengths[r] - 1
            query = np.arange(1, n)  # the token before the one that is predicted
            inside = ((query - 1) // period >= 1) & ((query - 1) % period < size - 1)
            out[r] = float(loss[torch.from_numpy(query[inside]).to(loss.device)].mean())
    return out
