"""Scores of all spans of a text from scores of its tokens, and the choice of spans that do not overlap.

Scores of spans are tensors (..., start, length - 1): ``psi[..., p, k]`` is the span of ``k + 1`` tokens that begins at
``p``, and ``-inf`` marks what is no candidate.  A segmentation is a tensor (..., position) of int64: the length of the
span that begins there, 0 where none does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

GRID = 2.0**32
"""Deltas are rounded to multiples of 1/GRID: sums of such numbers are exact in float64 (below 2**21)."""
DENOMINATORS = ("code", "paper")


def on_grid(delta: torch.Tensor) -> torch.Tensor:
    """Return float64 multiples of 2**-32, whose sums do not depend on their order; NaN stays NaN.

    With exact sums, equal scores are equal to the last bit, whichever way and in whichever batch they are computed.
    """
    return (delta.double() * GRID).round() / GRID


def span_scores(
    delta: torch.Tensor,
    inside: torch.Tensor | None = None,
    offsets: Sequence[int] = (0, -1, -2),
    *,
    denominator: str = "code",
    left_penalty: bool = True,
    right_penalty: bool = False,
    max_length: int | None = None,
) -> torch.Tensor:
    """Return the erasure score psi of every span, by prefix sums.

    For the span p..q (inclusive) of n tokens

        psi = [delta(q, 0) + sum over t = p..q and i < 0 of s(t, i) delta(t, i)] / denominator,

    with s = -1 where t + i < p (what is forgotten lies before the span) and +1 elsewhere.

    Parameters
    ----------
    delta : torch.Tensor
        (..., position, offset) drop of the score of the true token at position + offset; NaN where the term is missing.
    inside : torch.Tensor, optional
        (..., position) bool, true on positions that a span may hold (no padding, no BOS); by default all.
    offsets : sequence of int
        Of the last axis of ``delta``: 0 and negative ones. The paper has 0, -1, -2.
    denominator : {"code", "paper"}
        ``"code"``: the number of terms that are present (the released code; its offset 0 always is). ``"paper"``: 1 +
        2n (in general 1 + n for each negative offset), missing terms counted as 0.
    left_penalty : bool
        Whether s is -1 for targets before the span; without, these terms count 0 (and not in the denominator "code").
    right_penalty : bool
        Subtract also what the tokens after the span forget of the span; not in the paper.  These terms count in the
        denominator.
    max_length : int, optional
        Longest span; by default the whole text.

    Returns
    -------
    torch.Tensor
        (..., position, length) float64; 0 where no term is present, -inf where the span runs over the end or holds a
        position that is not inside.

    Raises
    ------
    ValueError
        For positive or repeated offsets, a missing offset 0, an unknown denominator, or a length below 1.

    References
    ----------
    Feucht et al. 2024, arXiv 2406.20086, equation 1.

    Examples
    --------
    >>> delta = torch.tensor([[0.1, torch.nan, torch.nan], [0.2, 0.5, torch.nan], [0.6, 0.4, 0.3]])
    >>> [round(float(x), 4) for x in span_scores(delta)[0]]
    [0.1, 0.35, 0.45]
    """
    check_offsets(offsets)
    check_options(denominator, left_penalty, right_penalty, max_length)
    if delta.shape[-1] != len(offsets):
        raise ValueError(f"delta has {delta.shape[-1]} columns, but there are {len(offsets)} offsets")
    n = delta.shape[-2]
    m = n if max_length is None else min(max_length, n)
    present = (~delta.isnan()).double()
    delta = on_grid(delta).nan_to_num(nan=0.0)
    now = list(offsets).index(0)
    past = {column: -i for column, i in enumerate(offsets) if i < 0}

    def total(x: torch.Tensor, before: float, after: float) -> torch.Tensor:
        """Add up terms over each span, those with a target before it and those of the tokens after it so weighted."""
        columns = x[..., list(past)].sum(-1)
        out = _windows(x[..., now], m) + _sums(columns, m)
        if before != 1:
            # Term (p + j, i) has its target before p exactly if j < -i: only the first few tokens of a span have one.
            for j in range(min(max(past.values(), default=0), m)):
                outer = x[..., [c for c, i in past.items() if i > j]].sum(-1)
                out[..., j:] += (before - 1) * _shifted(outer, j)[..., None]
        if right_penalty:
            for c, i in past.items():
                for j in range(max(1, i - m + 1), i + 1):
                    out[..., i - j :] += after * _windows(_shifted(x[..., c], j), m)[..., i - j :]
        return out

    score = total(delta, before=-1.0 if left_penalty else 0.0, after=-1.0)
    if denominator == "code":
        count = total(present, before=1.0 if left_penalty else 0.0, after=1.0)
    else:
        lengths = torch.arange(1, m + 1, device=delta.device, dtype=torch.float64)
        count = 1 + len(past) * lengths
        if right_penalty:
            count = count + sum(lengths.clamp(max=i) for i in past.values())
    score = torch.where(count > 0, score / count.clamp(min=1), 0.0)
    return score.masked_fill_(~_candidates(inside, n, m, delta.device), -torch.inf)


def check_offsets(offsets: Sequence[int]) -> None:
    """Raise ValueError unless the offsets are 0 and different negative numbers."""
    bad = [i for i in offsets if i > 0]
    if bad or 0 not in offsets or len(set(offsets)) < len(offsets):
        raise ValueError(
            f"offsets {tuple(offsets)}: a span is scored by what its tokens forget of themselves (0) and of tokens "
            "before them (-1, -2, ...), each once"
        )


def check_options(
    denominator: str = "code", left_penalty: bool = True, right_penalty: bool = False, max_length: int | None = None,
    **others: object,
) -> None:  # fmt: skip
    """Raise ValueError for options of `span_scores` that make no sense, or that it does not have."""
    if others:
        raise ValueError(
            f"psi has no option {next(iter(others))!r}: give denominator, left_penalty, right_penalty, max_length"
        )
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator={denominator!r}: give {' or '.join(map(repr, DENOMINATORS))}")
    if bad := {
        k: v for k, v in (("left_penalty", left_penalty), ("right_penalty", right_penalty)) if type(v) is not bool
    }:
        raise ValueError(f"{next(iter(bad))}={next(iter(bad.values()))!r}: give True or False")
    if max_length is not None and (type(max_length) is not int or max_length < 1):
        raise ValueError(f"max_length={max_length}: a span has at least one token")


def segment_greedy(psi: torch.Tensor) -> torch.Tensor:
    """Accept spans from the highest score down, each unless it overlaps one accepted before.

    Every position inside ends up in a segment, since single tokens are candidates too.  Of equal scores the longer span
    goes first, then the one that begins first. One step per accepted span, for all texts of a batch together; each step
    looks at the best span from each start that still fits, so nothing is sorted.

    Parameters
    ----------
    psi : torch.Tensor
        (..., position, length) scores, -inf where there is no candidate.

    Returns
    -------
    torch.Tensor
        (..., position) int64 length of the segment that begins there, 0 where none does.

    References
    ----------
    Feucht et al. 2024, arXiv 2406.20086, section 5 (ties are left open there).

    Examples
    --------
    >>> psi = torch.tensor([[0.1, 0.4], [0.2, -torch.inf]])
    >>> segment_greedy(psi)
    tensor([2, 0])
    """
    *batch, n, m = psi.shape
    flat = psi.reshape(-1, n, m)
    place = torch.arange(n, device=psi.device, dtype=torch.int64)
    steps = torch.arange(m, device=psi.device, dtype=torch.int64)
    best = flat.cummax(-1).values  # of the spans from p with at most k + 1 tokens
    best_k = torch.where(flat == best, steps, -1).cummax(-1).values  # the longest of them with that score
    room = torch.full((len(flat), n), m - 1, device=psi.device, dtype=torch.int64)
    free = torch.ones(len(flat), n, dtype=torch.bool, device=psi.device)
    lengths = torch.zeros(len(flat), n, dtype=torch.int64, device=psi.device)
    for step in range(n):
        value = best.gather(-1, room[..., None])[..., 0].masked_fill(~free, -torch.inf)
        k = best_k.gather(-1, room[..., None])[..., 0]
        top = value.amax(-1, keepdim=True)
        first = torch.where(value == top, k * n + (n - 1 - place), -1).argmax(-1, keepdim=True)
        found = top > -torch.inf
        length = torch.where(found, k.gather(-1, first) + 1, 0)
        lengths.scatter_add_(-1, first, length)
        free &= (place < first) | (place >= first + length)
        room = torch.where((place < first) & found, torch.minimum(room, first - 1 - place), room)
        if step % 16 == 15 and not bool(found.any()):
            break
    return lengths.reshape(*batch, n)


def segment_dp(psi: torch.Tensor, weight: str = "length", penalty: float = 0.0) -> torch.Tensor:
    """Choose the spans that do not overlap and have the greatest total worth (weighted interval scheduling).

    Parameters
    ----------
    psi : torch.Tensor
        (..., position, length) scores, -inf where there is no candidate.
    weight : {"length", "span"}
        Worth of a span: ``(psi - penalty) * tokens``, or ``psi - penalty``.
    penalty : float
        Taken off every score: spans below it are never chosen, and more of it gives fewer segments.

    Returns
    -------
    torch.Tensor
        (..., position) int64 length of the segment that begins there, 0 where none does.  Positions may stay uncovered:
        only spans of positive worth are chosen.  Of equally good choices, the one with the longer last span is taken.

    Raises
    ------
    ValueError
        For an unknown weight.

    Examples
    --------
    >>> psi = torch.tensor([[0.1, 0.4], [0.2, -torch.inf]])
    >>> segment_dp(psi), segment_dp(psi, penalty=0.5)
    (tensor([2, 0]), tensor([0, 0]))
    """
    *batch, n, m = psi.shape
    worth = worth_of(psi.reshape(-1, n, m), weight, penalty)
    # By end: gain[b, e, k] is the worth of the span of k + 1 tokens that ends at e.
    end, k = (
        torch.arange(n, device=psi.device, dtype=torch.int64)[:, None],
        torch.arange(m, device=psi.device, dtype=torch.int64),
    )
    start = end - k
    gain = worth[:, start.clamp(min=0), k].masked_fill(start < 0, -torch.inf)
    total = gain.new_full((len(worth), n + m), -torch.inf)  # total[:, m - 1 + e]: the best of the first e tokens
    total[:, m - 1] = 0
    chosen = torch.zeros(len(worth), n, dtype=torch.int64, device=psi.device)
    for e in range(n):
        value = total[:, e : e + m].flip(-1) + gain[:, e]
        best = value.amax(-1)
        longest = torch.where(value == best[:, None], k, -1).amax(-1)
        stay = total[:, m - 1 + e]
        better = best > stay
        total[:, m + e] = torch.where(better, best, stay)
        chosen[:, e] = torch.where(better, longest + 1, 0)
    lengths = torch.zeros_like(chosen)
    at = torch.full((len(worth),), n - 1, device=psi.device, dtype=torch.int64)
    for e in range(n - 1, -1, -1):
        here = at == e
        length = torch.where(here, chosen[:, e], 0)
        lengths.scatter_add_(-1, (e - length + 1).clamp(0, n - 1)[:, None], length[:, None])
        at = torch.where(here, e - length.clamp(min=1), at)
    return lengths.reshape(*batch, n)


def worth_of(psi: torch.Tensor, weight: str = "length", penalty: float = 0.0) -> torch.Tensor:
    """Return the worth of every span, as `segment_dp` adds it up; the shape of ``psi``."""
    if weight not in ("length", "span"):
        raise ValueError(f"weight {weight!r}: write 'length' or 'span'")
    lengths = torch.arange(1, psi.shape[-1] + 1, device=psi.device, dtype=psi.dtype)
    return (psi - penalty) * (lengths if weight == "length" else 1.0)


def segments(lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return text, start and stop (half open) of every segment of a batch, in order.

    Parameters
    ----------
    lengths : torch.Tensor
        (text, position) from `segment_greedy` or `segment_dp`.

    Examples
    --------
    >>> [x.tolist() for x in segments(torch.tensor([[3, 0, 0, 1]]))]
    [[0, 0], [0, 3], [3, 4]]
    """
    text, start = lengths.nonzero(as_tuple=True)
    return text, start, start + lengths[text, start]


def sums_over(values: torch.Tensor, text: torch.Tensor, start: torch.Tensor, stop: torch.Tensor) -> torch.Tensor:
    """Return (span,) sums of (text, position) values over spans."""
    prefix = _prefix(values)
    return prefix[text, stop] - prefix[text, start]


# -- pieces ---------------------------------------------------------------------------------------------------
def _prefix(values: torch.Tensor) -> torch.Tensor:
    """Return (..., n + 1) sums of the first 0, 1, ..., n values."""
    return torch.nn.functional.pad(values.cumsum(-1, dtype=torch.float64), (1, 0))


def _windows(values: torch.Tensor, m: int) -> torch.Tensor:
    """Return (..., n, m) values at p + k, 0 beyond the end; a view of a padded copy."""
    return torch.nn.functional.pad(values, (0, m - 1)).unfold(-1, m, 1)


def _sums(values: torch.Tensor, m: int) -> torch.Tensor:
    """Return (..., n, m) sums of values p..p + k."""
    prefix = _prefix(values)
    return _windows(prefix[..., 1:], m) - prefix[..., :-1, None]


def _shifted(values: torch.Tensor, j: int) -> torch.Tensor:
    """Return the values j places further on, 0 beyond the end."""
    return torch.nn.functional.pad(values, (0, j))[..., j:]


def _candidates(inside: torch.Tensor | None, n: int, m: int, device: torch.device) -> torch.Tensor:
    """Return (..., n, m) bool, true on spans within the text whose positions are all inside."""
    if inside is None:
        inside = torch.ones(n, dtype=torch.bool, device=device)
    return _sums(inside.double(), m) == torch.arange(1, m + 1, device=device, dtype=torch.int64)
