"""Activations at chosen tokens as one labelled array, for whatever comes after."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ..models.steady import steady
from ..results.dataset import block_coords, layer_coords, variable
from ..results.stamp import stamped
from ..settings import checked, choose, one_of, short
from ..text.prompts import Prompts
from ..text.spans import Spans, TokenSpans
from .kept_states import DTYPES, KeptStates, states_facts
from .sites import Site
from .stream import stream

if TYPE_CHECKING:
    from ..models.base import Model
    from .edits import Edit

MANY = 100_000
"""Tokens from which on a result names its places by a hash."""


@checked(site=one_of("resid", "resid_mid", "attn_out", "mlp_out"), dtype=one_of(*DTYPES))
@steady
def states(
    model: Model,
    prompts: Prompts | Sequence[str],
    layers: Iterable[int] | None = None,
    where: Any = None,
    *,
    site: str = "resid",
    edits: Sequence[Edit] = (),
    dtype: str = "float32",
    folder: str | Path | None = None,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Return the activations of a site at chosen tokens; all of them are kept, in memory or in a file.

    Parameters
    ----------
    model : Model
        What is run.
    prompts : Prompts or sequence of str
        On what.
    layers : iterable of int, optional
        Layers of ``resid``, blocks of the other sites; all by default.
    where : optional
        Which tokens: all but special ones by default; ``"last"`` of each prompt; a position, counted from the end if
        negative; the last token of each of some `Spans`, or `TokenSpans`; a bool for each token of all prompts.
    site : {"resid", "resid_mid", "attn_out", "mlp_out"}
        What is kept.
    edits : sequence of Edit
        What to change during the pass.
    dtype : {"float32", "float16"}
        In which the states are kept. float16 takes half the bytes and rounds each number to 11 bits.
    folder : path, optional
        Where they are kept, instead of in memory: ``FOLDER/states.npy``, mapped into memory, of which only what is
        looked at is read. The same call finds them there again.
    batch_tokens : int, optional
        Padded tokens in a batch.
    progress : bool
        Show a bar.

    Returns
    -------
    xarray.Dataset
        ``state`` (token, layer or block, channel), in the order of the spans, or of the stream; prompt,
        position, token id and text of each. NaN for prompts whose activations are not finite.

    Raises
    ------
    ValueError
        For layers that there are not, a position that a prompt lacks, spans of other texts, if no token is chosen, for
        a folder with other states, or a state that is too large for float16.

    Notes
    -----
    Memory: tokens x layers x channels x 4 bytes (2 in float16), in the file if there is a folder, beside a batch.

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = ["The Nile flows north.", "The Seine flows west."]
    >>> found = states(ti.load_model(), texts, [0, 4], ti.Spans.find(texts, ["Nile", "Seine"]))
    >>> dict(found["state"].sizes), found["prompt"].values.tolist()
    ({'token': 2, 'layer': 2, 'channel': 192}, [0, 1])
    >>> x = found["state"].sel(layer=4).values  # for scikit-learn
    """
    if not isinstance(prompts, Prompts):
        prompts = Prompts.from_texts(prompts, model)
    places = chosen_places(prompts, where)
    last = model.info.n_layers - (site != "resid")
    at = choose("layers", layers, last, model.info.id)
    wanted, slot = np.unique(places, return_inverse=True)
    row = np.full(prompts.n_tokens, -1)
    row[wanted] = np.arange(len(wanted))
    settings: dict[str, Any] = {
        "layers": at, "site": site, "places": places.tolist() if len(places) < MANY else places,
        "edits": [e.describe() for e in edits], **({} if dtype == "float32" else {"dtype": dtype}),
    }  # fmt: skip
    shape = (len(wanted), len(at), model.info.d_model)
    kept = KeptStates(folder, shape, dtype, {} if folder is None else states_facts(model, prompts, settings))
    sites = [] if kept.finished else [Site(site, n) for n in at]
    batches = stream(model, prompts, sites, edits=edits, batch_tokens=batch_tokens, progress=progress)
    for batch in batches if sites else ():
        to = row[batch.tokens.place]
        here = torch.from_numpy(np.flatnonzero(to >= 0)).to(batch.device)
        for k, s in enumerate(sites):
            found = batch.tokens.flatten(batch.activations[s]).index_select(0, here)
            kept.put(to[to >= 0], k, found.float().cpu().numpy())
    values = kept.finish()
    values = values if np.array_equal(slot, np.arange(len(wanted))) else values[slot]
    number = np.searchsorted(prompts.starts, places, side="right") - 1
    position = places - prompts.starts[number]
    strings = {int(n): prompts.strings(int(n)) for n in np.unique(number)}
    text = np.array([strings[int(n)][p] for n, p in zip(number, position, strict=True)], dtype=object)
    depth = layer_coords(at, model.info) if site == "resid" else block_coords(at, model.info, site)
    dim = "layer" if site == "resid" else "block"
    ds = xr.Dataset(
        {"state": variable(("token", dim, "channel"), values, f"activation of {site}", "1")},
        {
            **depth,
            "prompt": variable("token", number, "number of the prompt in the input", "1"),
            "position": variable("token", position, "position in the prompt, BOS counted", "token"),
            "token_id": variable("token", prompts.token_ids[places], "token id", "1"),
            "text": variable("token", text, "token as a string", "1"),
        },
    )
    out = stamped(ds, "states", model, prompts, settings).assign_attrs(edits="; ".join(map(str, edits)))
    return kept.stamp(out)


def chosen_places(prompts: Prompts, where: Any) -> np.ndarray:
    """Return (row,) places in the stream of all tokens that ``where`` of `states` chooses.

    Raises
    ------
    ValueError
        If it cannot be read, or chooses none.
    """
    starts, ends = prompts.starts[:-1], prompts.starts[1:]
    if where is None:
        found = np.flatnonzero(~prompts.vocabulary.special(prompts.token_ids))
    elif isinstance(where, str) and where == "last":
        found = ends - 1
    elif isinstance(where, Spans | TokenSpans):
        spans = where.align(prompts) if isinstance(where, Spans) else where
        found = (prompts.starts[spans.prompt] + spans.stop - 1)[np.argsort(spans.span, kind="stable")]
    elif isinstance(where, int | np.integer) and not isinstance(where, bool):
        if min(prompts.lengths) < (-where if where < 0 else where + 1):
            raise ValueError(f"where={where}: a prompt has {min(prompts.lengths)} tokens: choose a place that all have")
        found = (ends if where < 0 else starts) + int(where)
    elif isinstance(where, np.ndarray) and where.dtype == bool and where.shape == (prompts.n_tokens,):
        found = np.flatnonzero(where)
    else:
        raise ValueError(
            f"where={short(where)}: give 'last', a position, Spans, TokenSpans, or a bool array for each of the "
            f"{prompts.n_tokens} tokens"
        )
    if not len(found):
        raise ValueError(f"where={short(where)}: no token is chosen")
    return np.asarray(found, np.int64)


def embeddings_alone(model: Model, ids: np.ndarray) -> np.ndarray:
    """Return (id, d_model) float64 embeddings of token ids, as they enter block 0.

    Each is that of the token by itself at the first place, so that no learned place but the first is part of it.
    """
    kinds, inverse = np.unique(ids, return_inverse=True)
    out = np.full((len(kinds), model.info.d_model), np.nan)
    for batch in stream(model, Prompts.from_ids(kinds[:, None], model), [Site("resid", 0)]):
        out[batch.numbers] = batch.resid(0)[:, 0].double().cpu().numpy()
    return out[inverse]
