"""The tokens of a whole corpus as one cloud at each layer, and the nearest neighbours in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ...files.bars import progress_bar
from ...kernels.among import Among, nearest_among
from ...kernels.duplicates import first_of_kind
from ...kernels.indexed import INDEXES, faiss_nearest
from ...models.steady import steady
from ...results.dataset import check, variable
from ...results.stamp import derived
from ...run.kept_states import DTYPES
from ...run.states import chosen_places, states
from ...settings import LARGEST, checked, count, device, names, none, one_of, refuse
from ...text.prompts import Prompts
from ..kernels.corpus import Apart, Labels, extent, one_label
from .shared import check_cloud, finite_tokens, first_of_state, labels_of, layer_points, rule_of

if TYPE_CHECKING:
    from ...models.base import Model
    from ...run.edits import Edit

METHODS = ("exact", *INDEXES)
APART = ("token", "prompt", "document")
TRIED = 200  # rows whose neighbours are searched exactly beside an index


@checked(n_tokens=count(2) | none, dtype=one_of(*DTYPES))
@steady
def corpus_cloud(
    model: Model,
    prompts: Prompts | Sequence[str],
    layers: Iterable[int] | None = None,
    where: Any = None,
    *,
    n_tokens: int | None = None,
    edits: Sequence[Edit] = (),
    dtype: str = "float32",
    folder: str | Path | None = None,
    seed: int = 0,
    batch_tokens: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Return the stream at the tokens of a corpus, without tokens that have the same state by construction.

    A token with the same tokens before it, back to the beginning of its prompt, as a token of another prompt has the
    same state up to rounding: a copy, which makes distances of 0 or of rounding, and a dimension of nothing.  Only the
    first of such tokens is kept, with edits too (which may tell them apart), so that clouds are of the same tokens.

    Parameters
    ----------
    model : Model
        What is run.
    prompts : Prompts or sequence of str
        On what.
    layers : iterable of int, optional
        All by default.
    where : optional
        Which tokens, see `tokinterp.states`; all but special ones by default.
    n_tokens : int, optional
        That many of them, drawn at random (Ruppik et al. 2025 take 60,000); all by default.
    edits : sequence of Edit
        What to change during the pass.
    dtype : {"float32", "float16"}
        In which the states are kept.
    folder : path, optional
        Where they are kept, instead of in memory, see `tokinterp.states`: the same call finds them there again.
    seed : int
        Of the draw.
    batch_tokens : int, optional
        Padded tokens in a batch.
    progress : bool
        Show a bar.

    Returns
    -------
    xarray.Dataset
        ``state`` (token, layer, channel), prompt, position, token id and text of each token; the attribute
        ``n_same_beginning`` counts the tokens left out as copies.

    Raises
    ------
    ValueError
        As `tokinterp.states`; if fewer than ``n_tokens`` tokens are left.

    Notes
    -----
    Memory: tokens x layers x channels x 4 bytes (2 in float16) in memory or in the file; a million tokens of 4,096
    channels take 16 GB a layer.  Tokens of one prompt are not independent: many short prompts say more than a few long
    ones, and controls are clouds too: of `tokinterp.untrained`, of `tokinterp.text.shuffle_words`.

    References
    ----------
    Ruppik et al. 2025, arXiv 2506.01034 (the tokens of a corpus as one cloud, without copies).

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = [t.text[:200] for t in ti.bundled_texts("story")[:4]]
    >>> cloud = ti.geometry.corpus_cloud(ti.load_model(), texts, [0, 4], progress=False)
    >>> cloud["state"].dims
    ('token', 'layer', 'channel')
    """
    if not isinstance(prompts, Prompts):
        prompts = Prompts.from_texts(prompts, model)
    places = np.unique(chosen_places(prompts, where))
    first = same_beginning(prompts)
    kept = places[np.unique(first[places], return_index=True)[1]]
    copies = len(places) - len(kept)
    if n_tokens is not None:
        if n_tokens > len(kept):
            refuse("n_tokens", n_tokens, f"{len(kept)} tokens with states of their own are there")
        kept = np.random.default_rng(seed).choice(kept, n_tokens, replace=False)
    chosen = np.zeros(prompts.n_tokens, bool)
    chosen[kept] = True
    ds = states(
        model, prompts, layers, chosen, edits=edits, dtype=dtype, folder=folder, batch_tokens=batch_tokens,
        progress=progress,
    )  # fmt: skip
    return ds.assign_attrs(n_same_beginning=copies)


@checked(
    k=count(2), n_tokens=count(2) | none, apart=names(*APART), window=count(), method=one_of(*METHODS),
    memory=count(2**20, LARGEST), device=device | none,
)  # fmt: skip
def corpus_neighbours(
    cloud: xr.Dataset,
    k: int = 64,
    *,
    n_tokens: int | None = 2000,
    apart: Sequence[str] = (),
    window: int = 0,
    method: str = "exact",
    memory: int = 2**30,
    device: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """Search the nearest neighbours of tokens among all tokens of a corpus, at each layer.

    Parameters
    ----------
    cloud : xarray.Dataset
        From `corpus_cloud` or `tokinterp.states`.
    k : int
        Neighbours of each token.
    n_tokens : int, optional
        Tokens whose neighbours are searched, drawn at random, among all of the cloud; None for all.
    apart : sequence of str
        Which tokens are no neighbours: those with the same ``"token"`` id, of the same ``"prompt"`` or ``"document"``.
        What is left then of an effect does not come from the word itself, or from one text.
    window : int
        Tokens so many places or fewer apart in one prompt are no neighbours either: next to each other on the path of
        a text, they make a cloud look like a line (Theiler 1986).
    method : {"exact", "faiss", "faiss-ivf"}
        ``"exact"``: certified, block by block, on the CPU or a GPU.  The others need faiss (``pip install
        'tokinterp[faiss]'``) and the whole cloud in memory, and know no ``apart`` or ``window``: ``"faiss"`` compares
        all tokens in float32, ``"faiss-ivf"`` those in the nearest sixteenth of the cells of an inverted index.  Their
        error is measured: ``recall``.
    memory : int
        Bytes of working memory, 1 GiB by default, on the device and beside it; the cloud and the result come on top.
    device : str, optional
        ``"cuda"`` by default where there is one, else ``"cpu"``.
    seed : int
        Of the draw.
    progress : bool
        Show a bar over the layers.

    Returns
    -------
    xarray.Dataset
        ``distance`` (token, layer, k), ascending, NaN where there are fewer; ``neighbour`` (token, layer, k): its place
        in the cloud; ``same_state`` (token, layer): the place of the first token of the cloud with the same state;
        ``distinct`` (token, layer): whether no token before it in the result has that;
        ``n_unique`` and ``n_redone`` (layer); ``recall`` (layer) of an index.  The coordinate ``place`` is that of the
        token in the cloud.

    Raises
    ------
    ValueError
        If fewer than k + 1 distinct states are there, or the memory is too small.
    ImportError
        If faiss is asked for and not installed.

    Notes
    -----
    Equal states (at layer 0 every occurrence of a token) are one point, and no token is a neighbour of itself or of its
    copies; such a point is barred by ``apart`` or ``window`` if one of these rules bars all tokens that have the state.
    Tokens with a NaN at some layer take no part.

    Cost: 2 x tokens searched x tokens x channels operations a layer: 2,000 among a million of 4,096 channels 1.6e13
    (minutes on a CPU, a second on a GPU), all of a million 8e15.  Memory: ``memory``, the cloud where it is not in a
    file, 250 bytes a token of it, and 16 k bytes for each token searched and layer (up to 40 k while these are put
    together).

    References
    ----------
    Theiler 1986, Physical Review A 34, 2427 (``window``); Ruppik et al. 2025, arXiv 2506.01034 (corpus-wide clouds).

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = [t.text[:200] for t in ti.bundled_texts("story")[:4]]
    >>> cloud = ti.geometry.corpus_cloud(ti.load_model(), texts, [0, 4], progress=False)
    >>> near = ti.geometry.corpus_neighbours(cloud, k=8, n_tokens=None, apart=["prompt"], progress=False)
    >>> near["distance"].dims
    ('token', 'layer', 'k')
    """
    check_cloud(cloud)
    if method != "exact" and (apart or window):
        refuse("method", method, "apart= and window= go with method='exact'")
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    finite = finite_tokens(cloud, memory)
    places = np.flatnonzero(finite.numpy())
    if n_tokens is not None and n_tokens < len(places):
        places = np.sort(np.random.default_rng(seed).choice(places, n_tokens, replace=False))
    rows, labels = torch.from_numpy(places), labels_of(cloud, on)
    rule = rule_of(apart, window)
    found: list[Among] = []
    states_at, unique, recall = [], [], []
    with progress_bar(progress, cloud.sizes["layer"], unit="layer") as bar:
        for i in range(cloud.sizes["layer"]):
            points = layer_points(cloud, i)
            first = first_of_kind(points[None], finite[None], memory=memory)[0]
            usable = finite & (first == torch.arange(len(first), dtype=torch.int64, device=first.device))
            unique.append(int(usable.sum()))
            if unique[-1] <= k:
                refuse(
                    "k", k, f"layer {int(cloud['layer'][i])} has {unique[-1]} distinct states: take fewer neighbours"
                )
            own = first[rows]
            states_at.append(own.numpy())
            if rule != Apart():
                found.append(_apart(points, own, rows, k, first, usable, labels, rule, memory, on))
            else:
                each, back = own.unique(return_inverse=True)
                if method == "exact":
                    one = nearest_among(points, each, k, usable, memory=memory, device=on)
                else:
                    one = faiss_nearest(points, each, k, usable, method, memory)
                    recall.append(_recall(one, points, each, k, usable, memory, on, seed))
                found.append(Among(one.distances[back], one.indices[back], one.n_redone))
            bar.update(1)
    far, same = torch.stack([f.distances for f in found], 1), np.stack(states_at, 1)
    data = {
        "distance": variable(
            ("token", "layer", "k"), far.where(far.isfinite(), torch.nan), "distance to the neighbour", "1",
            short="distance to the k-th neighbour", range=(0, None), log=True, along=("k",),
        ),
        "neighbour": variable(
            ("token", "layer", "k"), torch.stack([f.indices for f in found], 1), "place of the neighbour in the cloud",
            "1",
        ),
        "distinct": variable(
            ("token", "layer"), first_of_state(same), "whether no earlier token of the result has the same state", "1"
        ),
        "same_state": variable(
            ("token", "layer"), same, "place of the first token of the cloud with the same state", "1"
        ),
        "n_unique": variable("layer", np.array(unique), "distinct states in the cloud", "1"),
        "n_redone": variable(
            "layer", np.array([f.n_redone for f in found]), "tokens searched again with more digits", "1"
        ),
    }  # fmt: skip
    if recall:
        data["recall"] = variable(
            "layer", np.array(recall), f"share of the exact neighbours found, of {min(TRIED, len(rows))} states", "1"
        )
    labels_only = cloud.coords.to_dataset().isel(token=places)
    coords = {n: v.variable for n, v in labels_only.coords.items() if "channel" not in v.dims}
    coords["k"] = variable("k", np.arange(1, k + 1), "neighbour, 1 the nearest", "1")
    coords["place"] = variable("token", places, "place in the cloud", "1")
    settings = {"k": k, "n_tokens": n_tokens, "apart": tuple(apart), "window": window, "method": method}
    ds = xr.Dataset(data, coords, {"first": "distance", "apart": ", ".join(apart), "window": window, "method": method})
    ds.attrs |= {"n_points": int(finite.sum()), "cloud_tokens": cloud.sizes["token"]}
    ds = derived(ds, "corpus_neighbours", [cloud], settings, seed)
    check(ds)
    return ds


def _apart(
    points: torch.Tensor, own: torch.Tensor, rows: torch.Tensor, k: int, first: torch.Tensor, usable: torch.Tensor,
    labels: Labels, rule: Apart, memory: int, on: torch.device,
) -> Among:  # fmt: skip
    """Search the neighbours of tokens (rows) with the states of others (own), some points barred."""
    at = first.to(on)
    only = Labels(*(one_label(v, at) for v in labels))
    reach = extent(labels.position, at)
    looking = rows.to(on)

    def barred(some: torch.Tensor, part: slice) -> torch.Tensor:
        return rule.groups(labels, only, reach, looking[some.to(on)], part)

    return nearest_among(points, own, k, usable, barred, memory=memory, device=on)


def _recall(
    one: Among, points: torch.Tensor, each: torch.Tensor, k: int, usable: torch.Tensor, memory: int, on: torch.device,
    seed: int,
) -> float:  # fmt: skip
    """Return the share of the exact k nearest that an index found, of some states."""
    some = np.random.default_rng(seed).permutation(len(each))[:TRIED]
    exact = nearest_among(points, each[some], k, usable, memory=memory, device=on)
    return float((one.distances[some] <= exact.distances[:, -1:]).double().mean())


def same_beginning(prompts: Prompts) -> np.ndarray:
    """Return (token,) the place of the first token that has the same tokens before it in its prompt, and the same id.

    Examples
    --------
    >>> same_beginning(Prompts.from_ids([[5, 6, 7], [5, 6, 8], [6, 7]])).tolist()
    [0, 1, 2, 0, 1, 5, 6, 7]
    """
    starts, lengths = prompts.starts[:-1], np.asarray(prompts.lengths)
    out = np.empty(prompts.n_tokens, np.int64)
    group = np.zeros(len(starts), np.int64)
    left = np.arange(len(starts))
    for position in range(int(lengths.max())):
        left = left[lengths[left] > position]
        places = starts[left] + position
        key = group[left] * 2**32 + prompts.token_ids[places]
        _, index, inverse = np.unique(key, return_index=True, return_inverse=True)
        group[left] = inverse
        out[places] = places[index][inverse]
    return out
