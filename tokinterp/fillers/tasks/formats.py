"""From examples to words: the forms none, filler, parallel and serial of Match3, and those of Match2."""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import match2, match3
from .words import Words

FORMATS = ("none", "filler", "parallel", "serial")
IGNORED = -100
"""Target that no loss counts."""


class Sequences(NamedTuple):
    """Words of examples in one format, right padded with EOS.

    Attributes
    ----------
    ids : torch.Tensor
        (example, position) int64 words, the answer last.
    targets : torch.Tensor
        (example, position) int64 word that comes next, EOS after the answer; -100 where none is asked for.
    answer_at : torch.Tensor
        (example,) int64 position whose next word is the answer.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    answer_at: torch.Tensor


def sequences(
    head: torch.Tensor, middle: torch.Tensor, length: torch.Tensor, tail: torch.Tensor, mask: str
) -> Sequences:
    """Put head, the first ``length`` words of middle, and tail together.

    Parameters
    ----------
    head, middle, tail : torch.Tensor
        (example, word) ids; the last word of the head ends the input, the last word of the tail is the answer.
    length : torch.Tensor
        (example,) words of the middle.
    mask : {"input", "final"}
        Which words are to be predicted: all after the input (the published ``P``), or only answer and EOS.
    """
    count, h = head.shape
    t = tail.shape[1]
    width = h + middle.shape[1] + t
    place = torch.arange(width, device=head.device, dtype=torch.int64).expand(count, -1)
    source = torch.cat([head, middle, tail, torch.zeros_like(head[:, :1])], 1)
    end = (h + length)[:, None]  # where the tail begins
    at = torch.where(place < end, place, place - end + h + middle.shape[1]).clamp_max(width)
    ids = source.gather(1, at)
    after = torch.cat([ids[:, 1:], torch.zeros_like(ids[:, :1])], 1)
    last = end + t - 1  # the answer
    supervised = (place >= h - 1) if mask == "input" else (place >= last - 1)
    return Sequences(ids, torch.where(supervised & (place <= last), after, IGNORED), last[:, 0] - 1)


def match3_sequences(
    x: match3.Instances, form: str, words: Words, n_fillers: int, generator: torch.Generator, mask: str = "input",
    mode: str = "strict",
) -> Sequences:  # fmt: skip
    """Write Match3 examples: rows P [middle] A True|False; ``mode`` is that of `serial` and `parallel`."""
    count, device = len(x.rows), x.rows.device
    fixed = torch.full((count, 1), words.prompt, device=device, dtype=torch.int64)
    head = torch.cat([words.row(x.rows), fixed], 1)
    answer = torch.where(x.label, words.true, words.false)[:, None]
    tail = torch.cat([torch.full_like(fixed, words.answer), answer], 1)
    if form == "serial":
        middle, length = serial(x.rows, words, generator, mode)
    else:
        if form == "none":
            middle = fixed[:, :0]
        elif form == "filler":
            middle = torch.full((count, n_fillers), words.filler, device=device, dtype=torch.int64)
        else:
            middle = parallel(x.rows, words, generator, mode)
        length = torch.full((count,), middle.shape[1], device=device, dtype=torch.int64)
    return sequences(head, middle, length, tail, mask)


def parallel(rows: torch.Tensor, words: Words, generator: torch.Generator, mode: str = "strict") -> torch.Tensor:
    """Return (example, n(n-1) + 2) words of the parallel chain of thought.

    For each pair i < j: one of its rows, drawn with equal chance; then the first k > j that completes it, else one
    digit of its sum at a random coordinate (always written in the block of coordinate 0).  As released, one stray item
    follows: the last row, and once more a digit of the sum of the last pair, in ``"released"`` mode, as published, at a
    coordinate of its own.
    """
    n, m = words.n, words.m
    i, j = match3.pairs(n, rows.device)
    shape = (len(rows), len(i))
    coin = torch.rand(shape, generator=generator, device=rows.device, dtype=torch.float32) < 0.5
    coordinate = torch.randint(words.d, shape, generator=generator, device=rows.device, dtype=torch.int64)[..., None]
    digit = (rows[:, i].gather(2, coordinate) + rows[:, j].gather(2, coordinate))[..., 0] % m
    k = match3.partner(rows, m)
    first = words.slot + torch.where(coin, i, j)
    second = torch.where(k >= 0, words.slot + k, words.digit + digit)
    again = second[:, -1:]
    if mode == "released":
        own = torch.randint(words.d, (len(rows), 1), generator=generator, device=rows.device, dtype=torch.int64)
        again = words.digit + ((rows[:, -2] + rows[:, -1]) % m).gather(1, own)
    stray = torch.cat([torch.full_like(again, words.slot + n - 1), again], 1)
    return torch.cat([torch.stack([first, second], 2).flatten(1), stray], 1)


def serial(
    rows: torch.Tensor, words: Words, generator: torch.Generator, mode: str = "strict"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (example, word) words of the serial, instance-adaptive chain of thought, and (example,) their number.

    Triples are read in lexicographic order; each whose coordinate 0 sums to zero is written: its rows, their digits at
    one random coordinate, then the sums of coordinates 1, 2, ... up to the first that is not zero.

    Parameters
    ----------
    mode : {"strict", "released"}
        ``"strict"``: the first triple that sums to zero everywhere is the last.  ``"released"``, as in the published
        code, where only the two inner loops end at a solved triple: the chain goes on with the later first rows, of
        each of which the one triple of it and the two rows behind it is still read.
    """
    n, d, m = words.n, words.d, words.m
    abc = match3.triples(n, rows.device)
    three = torch.stack([rows[:, r] for r in abc], 2)  # (example, triple, row, d)
    sums = three.sum(2) % m
    zero = sums == 0
    solved = zero.all(-1)
    read = solved.cumsum(1) - solved.long() == 0
    if mode == "released":
        at = solved.int().argmax(1)  # the first solved triple; where there is none, all are read anyway
        adjoining = (abc[1] == abc[0] + 1) & (abc[2] == abc[0] + 2)
        read |= adjoining & (abc[0] > abc[0][at][:, None])
    active = zero[..., 0] & read
    # Sums written: those of coordinates 1.. through the first that is not zero.
    written = (zero[..., 1:].long().cumprod(-1).sum(-1) + 1).clamp_max(d - 1)
    length = torch.where(active, 6 + written, 0)
    coordinate = torch.randint(d, three.shape[:2], generator=generator, device=rows.device, dtype=torch.int64)
    digits = three.gather(3, coordinate[:, :, None, None].expand(-1, -1, 3, 1))[..., 0]
    item = torch.cat(
        [words.slot + abc.T.expand(len(rows), -1, -1), words.digit + digits, words.digit + sums[..., 1:]], 2
    )
    total = length.sum(1)
    begin = (length.cumsum(1) - length)[..., None]
    place = torch.arange(6 + d - 1, device=rows.device, dtype=torch.int64)
    width = int(total.max()) if len(total) else 0
    at = torch.where(place < length[..., None], begin + place, width)
    out = torch.full((len(rows), width + 1), words.eos, device=rows.device, dtype=torch.int64)
    return out.scatter_(1, at.flatten(1), item.flatten(1))[:, :width], total


def match2_sequences(
    x: match2.Instances, form: str, words: Words, generator: torch.Generator, mask: str = "input"
) -> Sequences:
    """Write Match2 examples: rows T key [2n - 1 words] label.

    The chain of thought (``"parallel"``) gives rows 0 and 1 as shown and as decoded, the sum of these two decoded rows,
    and rows 2 to n-2 as shown and as decoded (of a row with a match, half of the time its inverse).  ``"filler"`` has a
    word A in the place of everything that needs the key.
    """
    n, m = words.n, words.m
    count = len(x.shown)
    end = torch.full((count, 1), words.prompt, device=x.shown.device, dtype=torch.int64)
    head = torch.cat([words.row(x.shown), end, words.key + x.key[:, None]], 1)
    coin = torch.rand((count, n), generator=generator, device=x.shown.device, dtype=torch.float32) < 0.5
    inverse = (coin & match2.matches(x.decoded, m))[..., None]
    said = torch.where(inverse, -x.decoded % m, x.decoded)
    said[:, :2] = x.decoded[:, :2]
    both = torch.stack([words.row(x.shown), words.row(said)], 2)  # (example, n, 2)
    total = words.row((x.decoded[:, 0] + x.decoded[:, 1]) % m)
    if form == "filler":
        both[..., 1], total = words.answer, torch.full_like(total, words.answer)
    middle = torch.cat([both[:, :2].flatten(1), total[:, None], both[:, 2 : n - 1].flatten(1)], 1)
    if form == "none":
        middle = middle[:, :0]
    length = torch.full((count,), middle.shape[1], device=end.device, dtype=torch.int64)
    return sequences(head, middle, length, words.label + x.label[:, None], mask)
