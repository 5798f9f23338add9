"""The implicit vocabulary: which units of several tokens a corpus is cut into where a model forgets its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..kernels.state import neutral
from ..settings import checked, count, instance, number, one_of, pair, result, several
from .vocabulary_tally import BOUNDARIES, EXAMPLE, Tally

if TYPE_CHECKING:
    from ..text.prompts import Prompts


@checked(
    ds=several(pair(result, instance("Prompts")), 1) | result,
    min_count=count(1),
    min_psi=number(),
    boundaries=one_of(*BOUNDARIES),
)
@neutral()
def read_out(
    ds: xr.Dataset | Iterable[tuple[xr.Dataset, Prompts]],
    prompts: Prompts | None = None,
    *,
    min_count: int = 2,
    min_psi: float | None = 0.0,
    keep_single: bool = False,
    boundaries: str = "any",
    n_boot: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Read the implicit vocabulary out of segments: units of token ids, ranked by their mean erasure score.

    Parameters
    ----------
    ds : Dataset, or iterable of (Dataset, Prompts)
        Result of `ErasureScores`; or those of several shards of a corpus, read one after the other.
    prompts : Prompts, optional
        What one result is of.
    min_count : int
        Fewest occurrences of a unit.
    min_psi : float, optional
        Only units whose mean score is above this: 0, or what `permutation_threshold` gives; None for all (as
        published).
    keep_single : bool
        Whether segments of one token are units too.
    boundaries : {"any", "word"}
        "word": only occurrences that begin and end where no word is cut.
    n_boot, level, seed
        Draws, level and seed of the bootstrap over documents.

    Returns
    -------
    xarray.Dataset
        With the dimension ``rank``: ``psi`` (mean), ``psi_sd``, ``psi_interval`` (NaN where the occurrences are in
        fewer than 3 documents), ``count``, ``n_documents``, ``ids`` (token ids as text), ``text``, ``n_tokens``,
        ``leading_space``, ``valid_utf8``, ``left_boundary`` and ``right_boundary`` (shares of occurrences), ``seen``,
        and the place of an example. Ties in psi go to the more frequent unit, then to the lower ids.

    Raises
    ------
    ValueError
        If no segment has two or more tokens, no unit is left, or result and prompts do not fit.

    References
    ----------
    Feucht et al. 2024, arXiv 2406.20086, section 5.

    Examples
    --------
    >>> from tokinterp.text import Prompts
    >>> prompts = Prompts.from_ids([[5, 6, 7, 5, 6]])
    >>> coords = {"span_prompt": ("span", [0, 0]), "start": ("span", [0, 3]), "stop": ("span", [2, 5])}
    >>> ds = xr.Dataset({"psi": ("span", [0.3, 0.5]), "seen": ("span", [1.0, 1.0])}, coords)
    >>> vocabulary = read_out(ds, prompts)
    >>> vocabulary["ids"].item(), round(vocabulary["psi"].item(), 3), vocabulary["count"].item()
    ('5 6', 0.4, 2)
    """
    tally = Tally(keep_single)
    if isinstance(ds, xr.Dataset):
        if prompts is None:
            raise ValueError("prompts=None: give the prompts that the result is of: read_out(ds, prompts)")
        tally.add(ds, prompts)
    else:
        for shard, of in ds:
            tally.add(shard, of)
    if tally.n_shards == 0:
        raise ValueError("no results to read a vocabulary from")
    return tally.table(
        min_count=min_count, min_psi=min_psi, boundaries=boundaries, n_boot=n_boot, level=level, seed=seed
    )


@checked(shuffled=result | several(result, 1))
@neutral()
def permutation_threshold(shuffled: xr.Dataset | Iterable[xr.Dataset], level: float = 0.95) -> float:
    """Return the score below which a share ``level`` of the segments of shuffled (or bigram) text lies.

    Parameters
    ----------
    shuffled : Dataset or iterable of Dataset
        Results of `ErasureScores` with the same settings over `shuffle_blocks(prompts, ...)`, perhaps of several seeds.
    level : float
        Share of the segments of two or more tokens.

    Raises
    ------
    ValueError
        If there is no such segment, or the level is not between 0 and 1.

    Examples
    --------
    >>> import numpy as np
    >>> coords = {"start": ("span", np.zeros(101)), "stop": ("span", np.full(101, 2))}
    >>> ds = xr.Dataset({"psi": ("span", np.arange(101.0))}, coords)
    >>> permutation_threshold(ds)
    95.0
    """
    sets = [shuffled] if isinstance(shuffled, xr.Dataset) else list(shuffled)
    scores = [d["psi"].values[(d["stop"] - d["start"]).values > 1] for d in sets]
    if not sum(map(len, scores)):
        raise ValueError(
            "shuffled: no segment of the shuffled text has two or more tokens: there is nothing to take a level of"
        )
    return float(np.quantile(np.concatenate(scores), level))


def contexts(vocabulary: xr.Dataset, prompts: Prompts | Sequence[Prompts], width: int = 30) -> list[str]:
    """Return, for each unit, an occurrence in its text, between brackets, with so many characters on either side."""
    shards = prompts if isinstance(prompts, list | tuple) else [prompts]
    columns = (vocabulary[n].values.tolist() for n in (*EXAMPLE, "n_tokens"))
    out = []
    for shard, prompt, start, n in zip(*columns, strict=True):
        strings = shards[shard].strings(prompt)
        before, after = "".join(strings[:start]), "".join(strings[start + n :])
        out.append(f"{before[-width:]}[{''.join(strings[start : start + n])}]{after[:width]}".replace("\n", "⏎"))
    return out


def token_ids(vocabulary: xr.Dataset) -> list[tuple[int, ...]]:
    """Return the token ids of each unit of a vocabulary."""
    return [tuple(map(int, str(text).split())) for text in vocabulary["ids"].values]
