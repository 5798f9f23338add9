"""Whether the first block merges the tokens of words, read from its weights alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from ...kernels.roc import auroc
from ...models.attention.first_block import FirstBlock, first_block
from ...models.steady import steady
from ...results.dataset import bound_coord, variable
from ...results.documents import interval_name
from ...results.stamp import stamped
from ...settings import checked, count
from ...stats.resample import mean_interval

if TYPE_CHECKING:
    from torch import Tensor

    from ...models.base import Model
    from ...text.prompts import Prompts

KAMODA = "Kamoda et al. 2025, arXiv 2501.15754"
SCORES = 2**27
"""Bytes of scores held at once."""


@checked(offsets=count(2), suffixes=count(2), bigrams=count(1), texts=count(2), length=count(3))
@steady
def detokenisation_scores(
    model: Model, prompts: Prompts, *, offsets: int = 64, suffixes: int = 256, bigrams: int = 100, texts: int = 32,
    length: int = 64, seed: int = 0,
) -> xr.Dataset:  # fmt: skip
    """Split the attention logits of the first block into terms of tokens and of places, without running the model.

    The terms: what the token that asks has to do with the one that is asked (``token-token``), what is asked of a token
    by all alike (``token``), and what places do.  A head that gathers the tokens of words has large ``token-token``
    terms for pairs that follow each other in texts.

    Parameters
    ----------
    model : Model
        One whose queries and keys can be seen.
    prompts : Prompts
        Texts whose pairs of neighbours are counted.
    offsets : int
        Places looked back at.
    suffixes : int
        The most frequent second tokens are scored.
    bigrams : int
        So many of the most frequent pairs are kept by themselves.
    texts, length : int
        Prompts, and tokens of each, for ``importance``.
    seed : int
        Of the control and of intervals.

    Returns
    -------
    xarray.Dataset
        By ``head``: ``auroc``, how well token-token tells first tokens that occur before a second one from those that
        never do, each as often as it occurs, mean over second tokens, with ``auroc_interval``; ``auroc_null``, with the
        first tokens of another second token, and ``excess``, what is above that, with ``excess_interval``: frequent
        tokens score high before any other.  ``place_logit`` by ``offset``: what place alone adds to the logit of a
        key, less that of the token itself.  ``importance`` by ``term``: how far the weights move, in nat, without it,
        mean over queries from the second on, with ``importance_interval`` over prompts.  By ``bigram``: ``score``,
        token-token of the pair, and ``rank`` among all ordinary tokens before its second, 0 the best.

    Raises
    ------
    ValueError
        If the model shows no queries and keys, its weights are no softmax of their products (a soft cap), or the texts
        have no pairs of ordinary tokens.

    Notes
    -----
    No pass reaches the first block's weights but one of 12 tokens, which proves that the terms add up to them;
    queries and keys of every token are read at the first block.  With learned places (GPT-2, OPT) the terms are the
    published six; the scale of the norm is that of token and place together, for ``auroc`` its mean over the first
    ``offsets`` places (the authors': all), and the bias is the one part that asks all alike.  With rotary places
    (tokens turned one place apart) and ALiBi (``place`` is its slope) what asks all alike is the mean over ordinary
    tokens, and ``place`` the product of mean query and mean key.  What is the same for all keys is no part.
    Second tokens that follow nothing have no AUROC; the authors count 0.  ``importance`` is a sum over keys; the
    authors' mean over keys is smaller by their number.

    References
    ----------
    Kamoda et al. 2025, Weight-based Analysis of Detokenization in Language Models, arXiv 2501.15754;
    github.com/gokamoda/lm-detokenization.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts([t.text for t in ti.bundled_texts("story")[:8]], model, max_tokens=128)
    >>> ds = ti.attention.detokenisation_scores(model, prompts, suffixes=8, texts=2, length=8)
    >>> ds.attrs["places"], ds["auroc"].dims
    ('rotary', ('head',))
    """
    pairs, counts = _pairs(prompts)
    if offsets > model.info.max_tokens:
        raise ValueError(f"offsets={offsets}: {model.info.id} has {model.info.max_tokens} places: give fewer")
    ids = np.arange(model.info.d_vocab)
    known = ids[: min(len(ids), prompts.vocabulary.known or len(ids))]
    ordinary = torch.from_numpy(known[~prompts.vocabulary.special(known)]).to(model.device)
    rows = [torch.from_numpy(prompts.ids(i)[:length].astype(np.int64)).to(model.device) for i in range(len(prompts))]
    rows = [r for r in rows if len(r) > 2][:texts]
    if len(rows) < 2:
        raise ValueError(f"prompts: {len(rows)} of {len(prompts)} have three tokens: give at least two that have")
    with torch.no_grad():
        block = first_block(model, ordinary, max(offsets, *(len(r) for r in rows)))
        sizes = block.mean_sizes(len(block.query), min(model.info.max_tokens, offsets))
        auroc, null = _aurocs(block, sizes, pairs, counts, ordinary, suffixes, seed)
        moved = torch.stack([_importance(block, r) for r in rows]).cpu().numpy()  # (prompt, term, head)
        place = block.by_offset(offsets, ordinary)
        most = np.argsort(-counts, kind="stable")[:bigrams]
        score, rank = _best(block, sizes, pairs[most], ordinary)
    over = interval_name("AUROC", 0.95, "second tokens", len(auroc))
    moves = "how far attention weights move without the term"
    data = {
        "auroc": variable("head", auroc.mean(0), "AUROC of first tokens by token-token logit", "1", KAMODA,
                          range=(0, 1)),
        "auroc_interval": variable(("bound", "head"), mean_interval(auroc, seed=seed), over, "1"),
        "auroc_null": variable("head", null.mean(0), "AUROC of the first tokens of another second token", "1",
                               range=(0, 1)),
        "excess": variable("head", (auroc - null).mean(0), "AUROC above that of another second token", "1", chance=0),
        "excess_interval": variable(("bound", "head"), mean_interval(auroc - null, seed=seed), f"{over}, excess", "1"),
        "place_logit": variable(("offset", "head"), place, "logit by place alone, less that of the token itself", "nat",
                                KAMODA, short="logit by place", along=("offset",)),
        "importance": variable(("term", "head"), moved.mean(0), moves, "nat", KAMODA, range=(0, None)),
        "importance_interval": variable(("bound", "term", "head"), mean_interval(moved, seed=seed),
                                        interval_name(moves, 0.95, "prompts", len(moved)), "nat"),
        "score": variable(("bigram", "head"), score, "token-token logit of the pair", "nat", KAMODA),
        "rank": variable(("bigram", "head"), rank, "first tokens with a larger token-token logit", "token", KAMODA,
                         range=(0, None)),
    }  # fmt: skip
    names = [prompts.vocabulary.strings(pairs[most, i].tolist()) for i in (0, 1)]
    coords = {
        "bound": bound_coord(),
        "head": variable("head", np.arange(block.query.shape[1]), "attention head", "1"),
        "offset": variable("offset", -np.arange(offsets), "place of the key less that of the query", "token"),
        "term": variable("term", np.array(block.names), "part of the logit, what asks first", "1"),
        "bigram": variable("bigram", np.arange(len(most)), "number of the pair, the most frequent first", "1"),
        "first_token": variable("bigram", np.array(names[0]), "first token", "1"),
        "second_token": variable("bigram", np.array(names[1]), "second token", "1"),
        "n_bigrams": variable("bigram", counts[most], "times that the pair occurs", "1"),
    }
    settings = {"offsets": offsets, "suffixes": suffixes, "bigrams": bigrams, "texts": texts, "length": length}
    first = "excess, auroc, place_logit, importance"
    attrs = {"first": first, "dimensions": "offset, term, bigram", "places": block.places, "n_suffixes": len(auroc)}
    return stamped(xr.Dataset(data, coords, attrs), "detokenisation_scores", model, prompts, settings, seed)


def _pairs(prompts: Prompts) -> tuple[np.ndarray, np.ndarray]:
    """Return (pair, 2) different ids that stand side by side, no special one among them, and how often."""
    ids, special = prompts.token_ids.astype(np.int64), prompts.special_mask
    begins = np.zeros(len(ids), dtype=bool)
    begins[prompts.starts[:-1]] = True
    second = np.flatnonzero(~begins & ~special)
    second = second[~special[second - 1]]
    if not len(second):
        raise ValueError(f"prompts: none of the {len(prompts)} has two ordinary tokens side by side: give longer texts")
    return np.unique(np.stack([ids[second - 1], ids[second]], 1), axis=0, return_counts=True)


def _aurocs(
    block: FirstBlock, sizes: Tensor | None, pairs: np.ndarray, counts: np.ndarray, ordinary: Tensor, most: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return (second token, head) AUROC of first tokens, and of those of another second token."""
    found, where = np.unique(pairs[:, 1], return_inverse=True)
    order = np.argsort(-np.bincount(where, weights=counts), kind="stable")[:most]
    if len(order) < 2:
        raise ValueError("prompts: all pairs have one second token, so that there is no control: give longer texts")
    size, device = len(block.query), block.query.device
    table = torch.zeros(len(order), size, dtype=torch.float64, device=device)
    row = np.full(len(found), -1)
    row[order] = np.arange(len(order))
    kept = row[where] >= 0
    at = [torch.from_numpy(x).to(device) for x in (row[where][kept], pairs[kept, 0])]
    table[at[0], at[1]] = torch.from_numpy(counts[kept].astype(np.float64)).to(device)
    table = table[:, ordinary]
    turn = np.random.default_rng(seed).permutation(len(order))
    other = np.empty(len(order), np.int64)
    other[turn] = np.roll(turn, 1)
    second = torch.from_numpy(found[order]).to(device)
    step = max(1, SCORES // (8 * size * block.query.shape[1]))
    own, null = [], []
    for rows in torch.arange(len(order), dtype=torch.int64, device=device).split(step):
        scores = block.next_scores(second[rows], sizes)[..., ordinary]
        own.append(_of_each(scores, table[rows]))
        null.append(_of_each(scores, table[torch.from_numpy(other).to(device)[rows]]))
    return torch.cat(own).cpu().numpy(), torch.cat(null).cpu().numpy()


def _of_each(scores: Tensor, counts: Tensor) -> Tensor:
    """Return (row, head) AUROC of (row, head, item) scores: items as often as they count against those that do not."""
    counts = counts[:, None]
    return auroc(scores, counts, counts == 0)


def _importance(block: FirstBlock, ids: Tensor) -> Tensor:
    """Return (term, head) float64 mean over queries of the divergence of the weights without each term."""
    terms = torch.stack([*block.terms(ids).values()])
    n = len(ids)
    shut = torch.full((n, n), -torch.inf, dtype=torch.float64, device=ids.device).triu(1)
    whole = (terms.sum(0) + shut).log_softmax(-1)
    left = (terms.sum(0) - terms + shut).log_softmax(-1)
    apart = torch.where(whole.isfinite(), whole.exp() * (whole - left), 0).sum(-1)
    return apart[..., 1:].mean(-1)


def _best(
    block: FirstBlock, sizes: Tensor | None, pairs: np.ndarray, ordinary: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Return (pair, head) token-token logit, and how many ordinary tokens before the second have a larger one."""
    first, second = (torch.from_numpy(pairs[:, i].copy()).to(ordinary.device) for i in (0, 1))
    step = max(1, SCORES // (8 * block.query.shape[0] * block.query.shape[1]))
    scores, ranks = [], []
    for rows in torch.arange(len(pairs), dtype=torch.int64, device=ordinary.device).split(step):
        every = block.next_scores(second[rows], sizes)
        own = every.gather(-1, first[rows][:, None, None].expand(-1, every.shape[1], 1))
        scores.append(own[..., 0])
        ranks.append((every[..., ordinary] > own).sum(-1))
    return torch.cat(scores).cpu().numpy(), torch.cat(ranks).cpu().numpy()
