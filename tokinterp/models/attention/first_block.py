"""What the first block's attention makes of tokens and places by themselves: its logits as a sum of terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ...run.edits import replace
from ...run.sites import Site
from ..embeddings import embeddings

if TYPE_CHECKING:
    from ..base import Model
    from ..hooks import HookedLM

QUERY, KEY, PATTERN, START = Site("query", 0), Site("key", 0), Site("pattern", 0), Site("resid", 0)
ROWS = 4096
"""Tokens that are looked at in one pass."""
PROOF = 12
"""Tokens of the text on which the split is proved."""
LEARNED = ("token-token", "token", "place-place", "place", "token-place", "place-token")
OTHERS = ("token-token", "token", "place", "token-place")


@dataclass
class FirstBlock:
    """The attention of the first block, taken apart.

    Attributes
    ----------
    places : {"learned", "rotary", "alibi", "none"}
        How attention knows places.
    query, key : torch.Tensor
        (vocab, head, d_head) float32 of every token by itself, of as many heads as queries; with learned places what is
        linear in the embedding, to be divided by the scale of the norm.
    constant : torch.Tensor
        (head, d_head) of queries that is no token's: with learned places the bias, else the mean over ordinary tokens.
    scale : float
        By which products of queries and keys are multiplied.
    slopes : torch.Tensor
        (head,) by how much a logit falls with each token between, ALiBi.
    turns : torch.Tensor or None
        (position, d_head, d_head) rotations, rotary.
    at_query, at_key : torch.Tensor or None
        (position, head, d_head) of learned places.
    sizes : callable or None
        Of token ids and positions: the scale of the norm, with learned places.
    mean_key : torch.Tensor
        (head, d_head) mean over ordinary tokens; zeros with learned places.
    """

    places: str
    query: Tensor
    key: Tensor
    constant: Tensor
    scale: float
    slopes: Tensor
    turns: Tensor | None = None
    at_query: Tensor | None = None
    at_key: Tensor | None = None
    sizes: Callable[[Tensor, Tensor], Tensor] | None = None
    mean_key: Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the terms, what asks first."""
        return LEARNED if self.places == "learned" else OTHERS

    def terms(self, ids: Tensor) -> dict[str, Tensor]:
        """Return (head, query, key) float64 logits of a prompt by term; their sum lacks what is the same for all keys.

        Parameters
        ----------
        ids : torch.Tensor
            (position,) token ids.
        """
        n = len(ids)
        place = torch.arange(n, device=ids.device, dtype=torch.int64)
        q, k = (x[ids].double().transpose(0, 1) for x in (self.query, self.key))  # (head, position, d_head)
        fixed = self.constant.double()[:, None]
        if self.places == "learned":
            assert self.sizes is not None
            assert self.at_query is not None
            assert self.at_key is not None
            size = self.sizes(ids, place)[:, None].double()
            p, r = (x[:n].double().transpose(0, 1) / size for x in (self.at_query, self.at_key))
            q, k = q / size, k / size
            both = {"token-token": (q, k), "token": (fixed.expand_as(q), k), "place-place": (p, r),
                    "place": (fixed.expand_as(q), r), "token-place": (q, r), "place-token": (p, k)}  # fmt: skip
            return {name: self.scale * a @ b.mT for name, (a, b) in both.items()}
        mean = torch.zeros_like(fixed) if self.mean_key is None else self.mean_key.double()[:, None]
        q, k, fixed, mean = (self.turned(x, place) for x in (q - fixed, k - mean, fixed, mean))
        apart = (place[:, None] - place).double()
        out = {"token-token": q @ k.mT, "token": fixed @ k.mT, "place": fixed @ mean.mT, "token-place": q @ mean.mT}
        out = {name: self.scale * x.expand(len(self.slopes), n, n) for name, x in out.items()}
        return out | {"place": out["place"] - self.slopes.double()[:, None, None] * apart}

    def turned(self, x: Tensor, place: Tensor) -> Tensor:
        """Return (head, position, d_head) as it is at these places."""
        x = x.expand(-1, len(place), -1)
        return x if self.turns is None else (x[:, :, None] @ self.turns[place].to(x))[:, :, 0]

    def by_offset(self, n: int, ordinary: Tensor) -> Tensor:
        """Return (offset, head) float64 what place alone gives the logit of a key so many tokens back, less that at 0.

        Parameters
        ----------
        n : int
            Offsets; with learned places the query stands at place n - 1.
        ordinary : torch.Tensor
            Token ids over whose norms the scale of places is averaged.
        """
        back = torch.arange(n, device=self.query.device, dtype=torch.int64)
        if self.places == "learned":
            assert self.sizes is not None
            assert self.at_query is not None
            assert self.at_key is not None
            inverse = torch.stack([(1 / self.sizes(ordinary, p.expand(len(ordinary))).double()).mean() for p in back])
            p, r = (x[:n].double() * inverse[:, None, None] for x in (self.at_query, self.at_key))
            found = self.scale * torch.einsum("hd,phd->ph", p[-1] + self.constant.double(), r).flip(0)
        else:
            assert self.mean_key is not None
            asks = self.turned(self.constant.double()[:, None], back).transpose(0, 1)
            found = self.scale * torch.einsum("phd,hd->ph", asks, self.mean_key.double())
            found = found - self.slopes.double() * back[:, None]
        return found - found[:1]

    def next_scores(self, second: Tensor, mean_sizes: Tensor | None) -> Tensor:
        """Return (token, head, vocab) float32: the term token-token of tokens that ask every token before them.

        Parameters
        ----------
        second : torch.Tensor
            (token,) ids that ask.
        mean_sizes : torch.Tensor or None
            (vocab,) mean scale of the norm of each token, with learned places.
        """
        q, k = self.query[second].float(), self.key
        if mean_sizes is not None:
            q, k = q / mean_sizes[second, None, None].float(), k / mean_sizes[:, None, None].float()
        else:
            assert self.mean_key is not None
            q, k = q - self.constant.float(), k - self.mean_key.float()
            one = torch.ones(len(q), device=q.device, dtype=torch.int64)
            q = self.turned(q.transpose(0, 1), one).transpose(0, 1) if self.turns is not None else q
        return self.scale * torch.einsum("shd,vhd->shv", q, k)

    def mean_sizes(self, vocab: int, n: int) -> Tensor | None:
        """Return (vocab,) mean over the first n places of the scale of the norm; None without learned places."""
        if self.sizes is None:
            return None
        every = torch.arange(vocab, device=self.query.device, dtype=torch.int64)
        places = torch.arange(n, device=every.device, dtype=torch.int64)
        return torch.stack([self.sizes(every, p.expand(vocab)).double() for p in places]).mean(0)


def first_block(model: Model, ordinary: Tensor, n_places: int) -> FirstBlock:
    """Take the attention of the first block apart, and prove by value that its terms give its weights.

    Parameters
    ----------
    model : Model
        One whose queries and keys can be seen.
    ordinary : torch.Tensor
        Token ids over which means are taken.
    n_places : int
        Places that are asked for.

    Raises
    ------
    ValueError
        If its queries and keys cannot be seen, or its weights are no softmax of products of them.
    """
    model.check([QUERY, KEY, PATTERN])
    many = cast("HookedLM", model)
    place = torch.arange(PROOF, device=model.device, dtype=torch.int64)
    text = ordinary[(place * 7919 + 11) % len(ordinary)]
    seen = many.run(text[None], [START, QUERY, KEY, PATTERN])
    heads = seen[PATTERN].shape[1]
    n_keys = many.attention.shapes[0].n_values

    def by_head(x: Tensor, site: Site) -> Tensor:
        x = x.unflatten(-1, (heads if site is QUERY else n_keys, -1)).float()
        return x if site is QUERY else x.repeat_interleave(heads // n_keys, -2)

    def asked(ids: Tensor, **given: object) -> tuple[Tensor, Tensor]:
        """(row, head, d_head) queries and keys of tokens that stand alone."""
        found = many.run(ids[:, None], [QUERY, KEY], **given)  # type: ignore[arg-type]
        return by_head(found[QUERY][:, 0], QUERY), by_head(found[KEY][:, 0], KEY)

    q, k = by_head(seen[QUERY][0], QUERY), by_head(seen[KEY][0], KEY)
    scale, slopes = _scale(model, q.double().transpose(0, 1), k.double().transpose(0, 1), seen[PATTERN][0].double())
    vocab = torch.arange(model.info.d_vocab, device=model.device, dtype=torch.int64)
    parts = [asked(ids) for ids in vocab.split(ROWS)]
    query, key = (torch.cat([p[i] for p in parts]) for i in (0, 1))
    alone = many.run(text[:, None], [START])[START][:, 0]
    away = (seen[START][0] - alone).norm(dim=-1) / alone.norm(dim=-1).clamp_min(1e-12)
    if float(away.max()) > 1e-3:  # looked up, not computed: equal but for what is added to it
        made = _learned(model, many, asked, query, key, scale, slopes, n_places, seen[START][0], text)
    else:
        mean, mean_key = query[ordinary].mean(0), key[ordinary].mean(0)
        turned = float((q - query[text]).norm() / q.norm()) > max(5e-3, many.tolerance / 2)
        kind = "rotary" if turned else "alibi" if bool(slopes.any()) else "none"
        turns = _turns(asked, ordinary, max(n_places, PROOF), query) if turned else None
        made = FirstBlock(kind, query, key, mean, scale, slopes, turns, mean_key=mean_key)
    whole = torch.stack([*made.terms(text).values()]).sum(0)
    true = seen[PATTERN][0].double()
    apart = _apart(whole, true)
    if apart > max(2 * many.tolerance, 5e-3):
        raise ValueError(
            f"{model.info.id} ({model.info.architecture}): the attention weights of its first block differ from those "
            f"of its terms by {apart:.2g} of the range of their logits: a norm of queries and keys, or an embedding, "
            "that is not linear there; take a model of another family"
        )
    return made


def _logs(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return log weights against those of the query itself, and where a key is seen."""
    seen = weights > 0
    logs = weights.clamp_min(1e-300).log()
    return torch.where(seen, logs - logs.diagonal(dim1=1, dim2=2)[..., None], 0), seen


def _apart(logits: Tensor, weights: Tensor) -> float:
    logs, seen = _logs(weights)
    own = torch.where(seen, logits - logits.diagonal(dim1=1, dim2=2)[..., None], 0)
    return float((own - logs).abs().max() / logs.abs().max().clamp_min(1e-6))


def _scale(model: Model, q: Tensor, k: Tensor, weights: Tensor) -> tuple[float, Tensor]:
    """Return the scale of products and the slope of each head, by least squares over log weights."""
    logs, seen = _logs(weights)
    scores = q @ k.mT
    above = torch.where(seen, scores - scores.diagonal(dim1=1, dim2=2)[..., None], 0)
    n = len(weights[0])
    place = torch.arange(n, device=q.device, dtype=torch.float64)
    back = torch.where(seen, (place[:, None] - place), 0)
    found = torch.stack([
        torch.linalg.lstsq(torch.stack([a.flatten(), back[h].flatten()], 1), logs[h].flatten()[:, None])[0][:, 0]
        for h, a in enumerate(above)
    ])  # fmt: skip
    scale = float(found[:, 0].median())
    slopes = -found[:, 1]
    slopes = torch.where(slopes.abs() < 1e-3, 0, slopes)
    rest = logs - scale * above + slopes[:, None, None] * back
    apart = float(rest.abs().max() / logs.abs().max().clamp_min(1e-6))
    if not scale > 0 or apart > max(2 * cast("HookedLM", model).tolerance, 5e-3):
        raise ValueError(
            f"{model.info.id} ({model.info.architecture}): the attention weights of its first block are no softmax of "
            f"products of queries and keys with a slope over places (apart by {apart:.2g}: a soft cap, or another bias "
            "of places), so that their logits have no terms; take a model of another family"
        )
    return scale, slopes


def _turns(asked: Callable[..., tuple[Tensor, Tensor]], ordinary: Tensor, n: int, query: Tensor) -> Tensor:
    """Return (position, d_head, d_head) float64 rotations, found from what some tokens ask at each place."""
    some = ordinary[: max(8, -(-4 * query.shape[2] // query.shape[1]))]
    still = query[some].double().flatten(0, 1)
    moved = []
    for p in range(n):
        place = torch.full((len(some), 1), p, device=some.device, dtype=torch.int64)
        moved.append(asked(some, position_ids=place)[0].double().flatten(0, 1))
    return torch.linalg.lstsq(still.expand(n, -1, -1), torch.stack(moved))[0]


def _learned(
    model: Model, many: HookedLM, asked: Callable[..., tuple[Tensor, Tensor]], query: Tensor, key: Tensor, scale: float,
    slopes: Tensor, n: int, stream: Tensor, text: Tensor,
) -> FirstBlock:  # fmt: skip
    """Return the terms where learned places are added to the embedding."""
    table = embeddings(model, ("input",))["input"].to(stream.device)
    n = max(n, PROOF)
    if table.shape[1] != stream.shape[1]:
        raise ValueError(
            f"{model.info.id} ({model.info.architecture}): its embedding is mapped before places are added to it, so "
            "that the first block's logits have no terms here; take a model of another family"
        )
    one = text[:1].expand(n)[None]
    rows = (many.run(one, [START])[START][0] - table[text[0]]).float()

    def of(x: Tensor) -> tuple[Tensor, Tensor]:
        parts = [asked(torch.zeros_like(y[:, 0], dtype=torch.int64), edits=[replace(START, y[:, None])])
                 for y in x.split(ROWS)]  # fmt: skip
        q, k = (torch.cat([p[i] for p in parts]) for i in (0, 1))
        return q, k

    seeded = torch.Generator("cpu").manual_seed(0)
    draw = torch.randn(4, table.shape[1], generator=seeded, dtype=torch.float32, device="cpu").to(table)
    size = table.norm(dim=1).mean() / table.shape[1] ** 0.5
    draw = draw * size
    (plus, plus_k), (minus, minus_k) = of(draw), of(-draw)
    fixed, fixed_k = ((plus + minus) / 2).mean(0), ((plus_k + minus_k) / 2).mean(0)
    kind = _norm_kind(of, draw, plus - fixed, fixed)
    eps = 0.0 if kind == "none" else _eps(of, draw[:1], fixed, kind)

    def size_of(x: Tensor) -> Tensor:
        x = x.double()
        if kind == "none":
            return torch.ones_like(x[..., 0])
        x = x - x.mean(-1, keepdim=True) if kind == "layer" else x
        return (x.square().mean(-1) + eps).sqrt()

    def linear(x: Tensor) -> tuple[Tensor, Tensor]:
        q, k = of(x)
        s = size_of(x).float()[:, None, None]
        return (q - fixed) * s, (k - fixed_k) * s

    def sizes(ids: Tensor, place: Tensor) -> Tensor:
        return size_of(table[ids].double() + rows[place].double())

    tokens, places = linear(table[: model.info.d_vocab]), linear(rows)
    return FirstBlock(
        "learned", *tokens, fixed, scale, slopes, None, *places, sizes, torch.zeros_like(fixed),
    )  # fmt: skip


def _norm_kind(of: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, moved: Tensor, fixed: Tensor) -> str:
    """Return none, rms or layer: what the norm before the first attention takes of the size and mean of the stream."""

    def near(a: Tensor, b: Tensor) -> bool:
        return float((a - b).norm() / b.norm().clamp_min(1e-12)) < 1e-2

    if near(of(2 * x)[0] - fixed, 2 * moved):
        return "none"
    large = 1e3 * x
    return "layer" if near(of(large + 3 * large.std())[0], of(large)[0]) else "rms"


def _eps(of: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, fixed: Tensor, kind: str) -> float:
    """Return what the norm adds to the mean square, from how a small stream is shortened."""
    centred = (x - x.mean() if kind == "layer" else x).double()
    square = float(centred.square().mean())
    small = (1e-5 / square) ** 0.5
    far, near = ((of(s * x)[0] - fixed).double().norm() for s in (1e4, small))
    ratio = float(near / far)
    return max(0.0, 1e-5 * (1 / max(ratio, 1e-6) ** 2 - 1))
