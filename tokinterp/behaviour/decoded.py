"""What a model writes after each prompt, greedily, also while something is changed in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch
import xarray as xr

from ..models.steady import steady
from ..results.dataset import variable
from ..run.decoding import decode
from ..run.edits.ready import ready_edits
from ..run.engine import check_edits
from ..run.sites import resid
from ..run.walk import Walk, Walker, walked
from ..settings import checked, count, instance, several

if TYPE_CHECKING:
    from ..models.base import Model
    from ..run.batch import Batch
    from ..run.edits import Edit
    from ..text.prompts import Prompts


@checked(n_tokens=count(1), edits=several(instance("SiteEdit") | instance("KnockOut") | instance("Renumber")))
@steady
def continuations(
    model: Model, prompts: Prompts, n_tokens: int = 8, *, edits: Sequence[Edit] = (), **walk: Unpack[Walk]
) -> xr.Dataset:
    """Decode greedily after each prompt.

    Parameters
    ----------
    model, prompts
        What is run, and on what.
    n_tokens : int
        Tokens decoded after each prompt.
    edits : sequence of Edit
        What is changed during each pass. Chosen positions are those of the prompt's own tokens, whatever is decoded;
        where none are chosen the edit is made at the decoded tokens, too.
    **walk
        ``batch_tokens``, ``store``, ``checkpoint_every``, ``progress``: see `tokinterp.run.walk.Walk`.

    Returns
    -------
    xarray.Dataset
        ``generated`` ids and ``logprob`` (prompt, step), and ``text`` (prompt); -1, NaN and nothing for a prompt with
        NaN or infinite activations.

    Raises
    ------
    ValueError
        If prompt and continuation do not fit the context, or an edit does not fit the prompts; before anything is run.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["Once upon a time", "The Nile"], model)
    >>> hidden = ti.edits.knock_out([1])
    >>> ti.behaviour.continuations(model, prompts, 3, edits=[hidden])["generated"].shape
    (2, 3)
    """
    longest = max(prompts.lengths, default=0)
    if not longest:
        raise ValueError("prompts=[]: no prompts to continue: the list is empty")
    if longest + n_tokens - 1 > model.info.max_tokens:
        raise ValueError(
            f"n_tokens={n_tokens}: the longest prompt has {longest} tokens, and {model.info.id} a context of "
            f"{model.info.max_tokens}: at most {max(model.info.max_tokens - longest + 1, 0)} more fit"
        )
    check_edits(model, prompts, edits)
    last = model.info.n_layers

    def of_batch(batch: Batch) -> dict[str, torch.Tensor]:
        ready, places = ready_edits(edits, model, prompts, batch.numbers, batch.ids, batch.mask)
        found = decode(model, batch.ids, batch.mask, n_tokens, ready, places)
        return {"generated": found.ids, "logprob": found.logprob}

    def make(walker: Walker) -> xr.Dataset:
        found = walker.rows(prompts, resid([last]), of_batch, edits)
        text = ["".join(prompts.vocabulary.strings(ids[ids >= 0])) for ids in found["generated"]]
        v, dims = variable, ("prompt", "step")
        data = {
            "generated": v(dims, found["generated"], "token decoded greedily after the prompt", "1"),
            "logprob": v(dims, found["logprob"], "log-probability of the token decoded", "nat"),
            "text": v("prompt", np.array(text, object), "text decoded greedily after the prompt", "1"),
        }
        coords = {
            "prompt": v("prompt", range(len(prompts)), "number of the prompt in the input", "1"),
            "step": v("step", range(n_tokens), "token decoded, 0 first", "1"),
        }
        return xr.Dataset(data, coords, {"edits": "; ".join(map(str, edits))})

    settings = {"n_tokens": n_tokens, "edits": [e.describe() for e in edits]}
    return walked("continuations", model, prompts, settings, make, **walk)
