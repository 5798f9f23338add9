"""Text drawn from the bigrams of a corpus: the control that keeps pairs of tokens and takes away everything longer."""

from __future__ import annotations

import numpy as np

from .prompts import Prompts
from .tokenise import Tokenised


def sample_bigrams(prompts: Prompts, seed: int = 0) -> Prompts:
    """Draw prompts of the same lengths from a Markov chain with the bigrams of these prompts.

    Special tokens stay where they are, and so does the token after them, from which the chain goes on; each further
    token is one of those that follow the token before it somewhere in the prompts, as often as it does there. A token
    that nothing ever follows is followed by any token of the prompts.

    Parameters
    ----------
    prompts : Prompts
        What to imitate; all of them are read.
    seed : int
        Of the draws.

    Returns
    -------
    Prompts
        Without offsets into the original texts; each prompt is a document of its own.

    Examples
    --------
    >>> chain = sample_bigrams(Prompts.from_ids([[1, 2, 1, 2, 1, 2], [2, 1, 2, 1]]))
    >>> chain.ids(0).tolist()
    [1, 2, 1, 2, 1, 2]
    """
    ids = prompts.token_ids.astype(np.int64)
    special = prompts.vocabulary.special(ids)
    begins = np.zeros(len(ids), dtype=bool)
    begins[prompts.starts[:-1]] = True
    follows = ~begins
    follows[1:] &= ~special[1:] & ~special[:-1]
    second = np.flatnonzero(follows)
    second = second[np.argsort(ids[second - 1], kind="stable")]
    first, successors = ids[second - 1], ids[second]
    size = int(ids.max()) + 1
    begin = np.searchsorted(first, np.arange(size))
    count = np.searchsorted(first, np.arange(size), side="right") - begin
    anything = ids[~special]
    random = np.random.default_rng(seed)
    out = ids.copy()
    lengths = np.diff(prompts.starts)
    for step in range(1, int(lengths.max()) if len(lengths) else 0):
        places = prompts.starts[:-1][lengths > step] + step
        places = places[follows[places]]
        before, draw = out[places - 1], random.random(len(places))
        known = count[before] > 0
        which = np.where(known, begin[before] + (draw * count[before]).astype(np.int64), 0)
        alone = anything[(draw * len(anything)).astype(np.int64)]
        out[places] = np.where(known, successors[which], alone) if len(successors) else alone
    parts = Tokenised.bare(out.astype(prompts.token_ids.dtype), prompts.starts, prompts.truncated)
    note = "; ".join(n for n in (prompts.note, f"sample_bigrams(seed={int(seed)})") if n)
    return Prompts(parts, prompts.vocabulary, bos=prompts.bos, note=note)
