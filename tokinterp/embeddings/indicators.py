"""Which rows of the embeddings were never trained: the second step of the search for under-trained tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ..models.embeddings import embeddings, head_bias, tied
from ..models.steady import steady
from ..results.dataset import check, variable
from ..results.stamp import stamped
from ..settings import checked, count, number, several
from ..text.vocabulary import Vocabulary
from ..tokenizers import token_reachability

if TYPE_CHECKING:
    from ..models.base import Model

LAND = "Land and Bartolo 2024, Fishing for Magikarp, arXiv 2405.05417, section 2.2.2"
NEVER = (0xC0, 0xC1, *range(0xF5, 0x100))
"""Bytes that occur in no UTF-8 text."""
FLOOR = 1e-6  # of a product of norms, as published
SAYS = {
    "ein_l2": "norm of the row of the embedding",
    "eout_cos": "cosine distance of the row of the head to the mean row of unused ids",
    "eout_cos_centered": "the same after the mean row is taken off all rows",
    "eout_cos_wo_pc1": "the same without the first principal axis",
    "eout_l2": "distance of the row of the head to the mean row of unused ids",
    "eout_bias": "bias of the head",
}
ROWS = 16_384  # rows in float64 at once


@checked(unused=several(count()), percentile=number(0, 100))
@steady
def embedding_indicators(model: Model, *, unused: Sequence[int] | None = None, percentile: float = 2.0) -> xr.Dataset:
    """Say of every token id how far its row of the embeddings looks as if no text had ever trained it.

    Parameters
    ----------
    model : Model
        From `load_model` or `wrap`, with its tokenizer.
    unused : sequence of int, optional
        Ids that are known never to be trained on: their mean row of the head is what the others are compared with.  By
        default the tokens of the single bytes that occur in no UTF-8 text (C0, C1, F5 to FF).
    percentile : float
        Share in percent of the reachable tokens that become candidates.

    Returns
    -------
    xarray.Dataset
        On ``vocab`` (token id): ``indicator_value`` (with ``indicator``, low for what looks untrained; NaN where there
        is nothing to compare with), ``is_candidate`` and ``reachability`` (see
        `tokinterp.tokenizers.token_reachability`), ``n_bytes``, and ``n_supertokens``, how many other tokens contain
        its bytes.  On ``indicator``: ``mean``, ``sd`` over all rows and ``threshold``.  Attributes
        ``default_indicator``, ``unused_ids`` and ``tied``.

        - ``ein_l2``: norm of the embedding's row,
        - ``eout_cos``: one minus the cosine of the head's row and the mean row of unused ids,
        - ``eout_cos_centered``, ``eout_cos_wo_pc1``: the same after the mean row of all ids is taken off, and without
          the first principal axis of all rows,
        - ``eout_l2``: distance of the head's row from the mean row of unused ids,
        - ``eout_bias``: the head's bias, where it has one.

    Raises
    ------
    ValueError
        If head and embedding are one and no unused id is known; if ``unused`` has ids that the model lacks.

    Notes
    -----
    The default indicator is ``ein_l2``, and ``eout_cos`` where embedding and head are the same matrix.  The threshold
    is the percentile of an indicator over tokens of category ``ok`` alone; candidates have at most that and can be
    written, special tokens included.  A candidate is not yet an under-trained token: `repeat_tokens` asks the model.

    References
    ----------
    Land and Bartolo 2024, arXiv 2405.05417, section 2.2.2; github.com/cohere-ai/magikarp.

    Examples
    --------
    >>> import tokinterp as ti
    >>> ds = ti.embeddings.embedding_indicators(ti.load_model())
    >>> ds.attrs["default_indicator"], round(float(ds["mean"].sel(indicator="eout_cos")), 4)
    ('eout_cos', 0.5144)
    >>> lowest = ds["indicator_value"].sel(indicator="eout_cos").argsort()[:3]
    >>> ds["token"].values[lowest].tolist()[:2]
    ['<pad>', ' proble']
    """
    if model.tokenizer is None:
        raise ValueError(f"model={model.info.id} has no tokenizer: wrap it with one")
    size = model.info.d_vocab
    vocabulary = Vocabulary(model.tokenizer, max(size, Vocabulary(model.tokenizer).known))
    known = _never(vocabulary, size) if unused is None else np.unique(np.asarray(unused, dtype=np.int64))
    if len(known) and known[-1] >= size:
        raise ValueError(f"unused={int(known[-1])}: {model.info.id} has rows for {size} ids: give lower ones")
    one = tied(model)
    if one and not len(known):
        raise ValueError(
            f"unused={unused}: embedding and head of {model.info.id} are one matrix, and the tokenizer has no token "
            "for a byte that UTF-8 never uses: give ids that no text has"
        )
    matrices = embeddings(model)
    values = {"ein_l2": _norms(matrices["input"]), **_to_unused(matrices["output"], known)}
    bias = head_bias(model)
    if bias is not None and float(bias.double().norm()) > 1e-3:
        values["eout_bias"] = bias.double().cpu().numpy()
    reach = token_reachability(model.tokenizer, size=vocabulary.size)["reachability"].values[:size].astype(str)
    default = "eout_cos" if one else "ein_l2"
    names = list(values)
    table = np.stack([values[n] for n in names], 1)
    ok = reach == "ok"
    threshold = np.percentile(table[ok], percentile, axis=0) if ok.any() else np.full(len(names), np.nan)
    writes = np.isin(reach, ["ok", "ok_special"])
    pieces = vocabulary.bytes(np.arange(size))
    ds = xr.Dataset(
        {
            "indicator_value": variable(("vocab", "indicator"), table, "how untrained a row looks, low if it does", "1",
                                        LAND),
            "is_candidate": variable(("vocab", "indicator"), writes[:, None] & (table <= threshold),
                                     "whether the indicator takes it for under-trained", "1", LAND),
            "reachability": variable("vocab", reach, "whether text can become this token", "1", LAND),
            "n_bytes": variable("vocab", [len(p) for p in pieces], "bytes it stands for", "byte"),
            "n_supertokens": variable("vocab", n_supertokens(pieces), "other tokens that contain its bytes", "token"),
            "mean": variable("indicator", table.mean(0), "mean over all rows", "1"),
            "sd": variable("indicator", table.std(0), "standard deviation over all rows", "1"),
            "threshold": variable("indicator", threshold, f"percentile {percentile:g} over reachable tokens", "1",
                                  LAND),
        },
        {
            "vocab": variable("vocab", np.arange(size), "token id", "1"),
            "token": variable("vocab", np.array(vocabulary.strings(np.arange(size))), "token", "1"),
            "indicator": variable("indicator", np.array(names), "what is looked at", "1"),
            "says": variable("indicator", np.array([SAYS[n] for n in names]), "what the indicator is", "1"),
        },
        {"dimensions": "indicator", "default_indicator": default, "unused_ids": str(known.tolist()), "tied": int(one)},
    )  # fmt: skip
    settings = {"unused": known.tolist(), "percentile": percentile}
    ds = stamped(ds, "embedding_indicators", model, "", settings)
    check(ds)
    return ds


def n_supertokens(pieces: Sequence[bytes]) -> np.ndarray:
    """Return (vocab,) how many other tokens contain the bytes of each.

    Examples
    --------
    >>> n_supertokens([b"a", b"ab", b"bab", b"b"]).tolist()
    [2, 1, 0, 2]
    """
    number = {p: n for n, p in reversed(list(enumerate(pieces))) if p}
    longest = max(map(len, number), default=0)
    found = np.zeros(len(pieces), dtype=np.int64)
    for piece in pieces:
        ends = range(len(piece) + 1)
        inside = {piece[i:j] for i in ends for j in ends[i + 1 : i + longest + 1]} - {piece}
        for part in inside:
            if part in number:
                found[number[part]] += 1
    return np.array([found[number[p]] if p else 0 for p in pieces])


def _never(vocabulary: Vocabulary, size: int) -> np.ndarray:
    """Return the ids below ``size`` that stand for one byte which no UTF-8 text has."""
    wanted = {bytes([b]) for b in NEVER}
    return np.array([n for n, p in enumerate(vocabulary.bytes(np.arange(size))) if p in wanted], dtype=np.int64)


def _norms(rows: torch.Tensor) -> np.ndarray:
    return np.concatenate([part.double().norm(dim=1).cpu().numpy() for part in rows.split(ROWS)])


def _to_unused(rows: torch.Tensor, unused: np.ndarray) -> dict[str, np.ndarray]:
    """Return what compares each row of the head with the mean row of unused ids, as it is and after two changes."""
    names = ("eout_cos", "eout_cos_centered", "eout_cos_wo_pc1", "eout_l2")
    if not len(unused):
        return {n: np.full(len(rows), np.nan) for n in names}
    parts = rows.split(ROWS)
    mean = sum((p.double().sum(0) for p in parts), torch.zeros_like(rows[0], dtype=torch.float64)) / len(rows)
    square = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=rows.device)
    for part in parts:
        centred = part.double() - mean
        square += centred.T @ centred
    axis = torch.linalg.eigh(square)[1][:, -1]
    own = rows[torch.from_numpy(unused).to(rows.device)].double()

    def changes(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "eout_cos": x,
            "eout_cos_centered": x - mean,
            "eout_cos_wo_pc1": x - (x @ axis)[:, None] * axis,
        }

    targets = {n: x.mean(0) for n, x in changes(own).items()}
    out: dict[str, list[Any]] = {n: [] for n in names}
    for part in parts:
        for name, x in changes(part.double()).items():
            target = targets[name]
            size = (x.norm(dim=1) * target.norm()).clamp(min=FLOOR)
            out[name].append(1 - (x @ target) / size)
        out["eout_l2"].append((part.double() - targets["eout_cos"]).norm(dim=1))
    return {n: torch.cat(found).cpu().numpy() for n, found in out.items()}
