"""Which later words a state is made of, and edits that move it along them: the space of the Jacobian lens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ..kernels.pursuit import nonnegative_pursuit
from ..models.steady import steady
from ..results.dataset import variable
from ..results.stamp import stamped
from ..run import edits
from ..run.measurement import choose_layers
from ..run.sites import Site
from ..run.states import states
from ..settings import checked, count, number, several
from ..text.prompts import Prompts
from ..text.vocabulary import Vocabulary
from .jacobian import GURNEE, JacobianLens

if TYPE_CHECKING:
    from ..models.base import Model
    from ..run.edits import Positions, SiteEdit

PARALLEL = 0.999  # cosine of two directions above which they cannot be told apart


@checked(k=count(1))
@steady
def jacobian_space(
    model: Model,
    prompts: Prompts | Sequence[str],
    lens: JacobianLens,
    layers: Iterable[int] | None = None,
    where: Any = None,
    *,
    k: int = 25,
    seed: int = 0,
    batch_tokens: int | None = None,
) -> xr.Dataset:
    """Write states as sums of at most k directions of the Jacobian lens with weights that are not negative.

    Parameters
    ----------
    model, prompts
        What is run, and on what.
    lens : JacobianLens
        Of this model, to its last layer.
    layers : iterable of int, optional
        Layers of the states; those of the lens by default.
    where : optional
        Which tokens, as in `tokinterp.states`.
    k : int
        Most directions of a state; at most 25 as published.
    seed : int
        Of the rotation of the control.
    batch_tokens : int, optional
        Padded tokens in a batch.

    Returns
    -------
    xarray.Dataset
        (token, layer, n_chosen): ``share`` of the squared norm of the state that so many directions make up, and
        ``control``, the same for the directions after one random rotation, which has their norms and angles;
        ``atom`` and ``weight``, token ids in the order in which they are chosen, -1 where none is left, and the
        weights of all of them together, 0 for those that later ones replace; ``n_active`` (token, layer).
        NaN for states that are not finite.

    Raises
    ------
    ValueError
        If the lens is of another model or lacks a layer, or as `tokinterp.states`.

    Notes
    -----
    Each step takes the direction of the largest cosine with what is left of the state, and fits the weights of all that
    are chosen anew by non-negative least squares in float64 (as in transformer_lens 4); it ends where no cosine is
    positive.  Costs one forward pass, and per token and layer k products with (vocab, d).

    References
    ----------
    Gurnee et al. 2026, Verbalizable Representations Form a Global Workspace in Language Models.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [t.text[:150] for t in ti.bundled_texts("story")[:2]]
    >>> lens = ti.lens.fit_jacobian_lens(model, texts, layers=[7], progress=False)
    >>> ds = ti.lens.jacobian_space(model, texts, lens, where="last", k=5)
    >>> dict(ds["share"].sizes), bool((ds["share"].diff("n_chosen") >= -1e-9).all())
    ({'token': 2, 'layer': 1, 'n_chosen': 5}, True)
    """
    chosen = choose_layers(lens.layers if layers is None else layers, model.info)
    lens.check_use(model.info, chosen)
    prompts = prompts if isinstance(prompts, Prompts) else Prompts.from_texts(prompts, model, progress=False)
    found = states(model, prompts, chosen, where, batch_tokens=batch_tokens)
    vocab = range(model.info.d_vocab)
    k = min(k, len(vocab))
    rows, shape = found["state"].values, (found.sizes["token"], len(chosen), k)
    share, control, weight = (np.full(shape, np.nan) for _ in range(3))
    atom = np.full(shape, -1, np.int64)
    draw = torch.Generator().manual_seed(seed)
    d = model.info.d_model
    turn = torch.linalg.qr(torch.randn(d, d, generator=draw, dtype=torch.float64, device="cpu"))[0].float()
    for n, layer in enumerate(chosen):
        there = np.isfinite(rows[:, n]).all(1)
        x = torch.from_numpy(rows[there, n]).to(model.device)
        atoms = lens.directions(model, vocab, layer).to(model.device)
        own = nonnegative_pursuit(x, atoms, k)
        other = nonnegative_pursuit(x, atoms @ turn.to(atoms), k)
        share[there, n], control[there, n] = own.share.cpu(), other.share.cpu()
        atom[there, n], weight[there, n] = own.atom.cpu(), own.weight.cpu()
    texts = np.full(shape, "", object)
    texts[atom >= 0] = Vocabulary(model.tokenizer, model.info.d_vocab).strings(atom[atom >= 0])
    v, dims = variable, ("token", "layer", "n_chosen")
    data = {
        "share": v(dims, share, "share of the squared norm in the chosen directions", "1", GURNEE,
                   short="share of squared norm", range=(0, 1), beside=("control",), along=("n_chosen",)),
        "control": v(dims, control, "the same for directions that are rotated at random", "1",
                     short="rotated at random", range=(0, 1)),
        "atom": v(dims, atom, "token id of the direction, -1 where none is left", "1", GURNEE),
        "atom_text": v(dims, texts, "token of the direction", "1"),
        "weight": v(dims, weight, "weight of the direction", "1", GURNEE),
        "n_active": v(("token", "layer"), np.where(np.isnan(share[..., 0]), np.nan, (weight > 0).sum(-1)),
                      "directions with a weight above 0", "1", GURNEE),
    }  # fmt: skip
    coords = {name: c.variable for name, c in found.coords.items() if "channel" not in c.dims}
    coords["n_chosen"] = v("n_chosen", np.arange(1, k + 1), "directions chosen so far", "1")
    ds = xr.Dataset(data, coords, {"first": "share", "dimensions": "n_chosen"})
    settings = {"lens": lens.digest, "layers": chosen, "where": found.attrs["parameters"], "k": k}
    return stamped(ds, "jacobian_space", model, prompts, settings, seed)


# -- edits --------------------------------------------------------------------------------------------------------
@checked(token=count(), amount=number())
def steer(
    lens: JacobianLens, model: Model, token: int, layer: int, amount: float, positions: Positions = None
) -> SiteEdit:
    """Return an edit that adds to the stream at a layer what makes the model say a token later.

    Parameters
    ----------
    lens, model
        A Jacobian lens, and its model.
    token : int
        Id.
    layer : int
        Of the stream.
    amount : float
        Length of what is added, in units of the stream: the median norm of its states there is a lot.
    positions : Positions
        Where; None means everywhere.

    References
    ----------
    Gurnee et al. 2026, Verbalizable Representations Form a Global Workspace in Language Models.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [t.text[:150] for t in ti.bundled_texts("story")[:2]]
    >>> lens = ti.lens.fit_jacobian_lens(model, texts, layers=[6], progress=False)
    >>> edit = ti.lens.steer(lens, model, 300, 6, 50.0)
    >>> edit.op, round(float(edit.value.norm()), 3)
    ('add', 50.0)
    """
    unit = _units(lens, model, [token], layer)[0]
    return edits.add(Site("resid", layer), amount * unit, positions)


@checked(one=count(), other=count(), strength=number())
def swap(
    lens: JacobianLens, model: Model, one: int, other: int, layer: int, strength: float = 1.0,
    positions: Positions = None,
) -> SiteEdit:  # fmt: skip
    """Return an edit that exchanges the coordinates of a state along the directions of two tokens.

    With V = [v_one, v_other] and coordinates c = V^+ h the state becomes h + strength V (c exchanged - c): what is
    orthogonal to both directions stays.

    Parameters
    ----------
    lens, model, layer, positions
        As in `steer`.
    one, other : int
        Ids.
    strength : float
        1 exchanges, 2 is the double strength of the paper.

    Raises
    ------
    ValueError
        If the directions are (nearly) parallel.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [t.text[:150] for t in ti.bundled_texts("story")[:2]]
    >>> lens = ti.lens.fit_jacobian_lens(model, texts, layers=[6], progress=False)
    >>> str(ti.lens.swap(lens, model, 300, 400, 6))
    'apply(resid 6, exchanged)'
    """
    units = _units(lens, model, [one, other], layer)
    if abs(cosine := float(units[0] @ units[1])) > PARALLEL:
        raise ValueError(
            f"other={other}: its direction at layer {layer} has a cosine of {cosine:.4f} with that of {one}: there is "
            "nothing to exchange, give another token"
        )
    basis = lens.directions(model, [one, other], layer).double().to(model.device)
    change = strength * (torch.linalg.pinv(basis).flip(1) - torch.linalg.pinv(basis)) @ basis  # (d, 2) of coordinates

    def exchanged(x: torch.Tensor) -> torch.Tensor:
        return (x.double() + x.double() @ change).to(x.dtype)

    return edits.apply(Site("resid", layer), exchanged, positions)


@checked(tokens=several(count(), 1))
def project_out(
    lens: JacobianLens, model: Model, tokens: Sequence[int], layer: int, positions: Positions = None
) -> SiteEdit:
    """Return an edit that takes the directions of some tokens out of the stream at a layer.

    Parameters
    ----------
    lens, model, layer, positions
        As in `steer`.
    tokens : sequence of int
        Ids; what is taken out is the projection on all that their directions span.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [ti.bundled_texts("story")[0].text]
    >>> prompts = ti.Prompts.from_texts(texts, model, max_tokens=24)
    >>> lens = ti.lens.fit_jacobian_lens(model, prompts, layers=[4], skip=2, progress=False)
    >>> ti.lens.project_out(lens, model, [300, 301], layer=4).site
    Site(name='resid', at=4)
    """
    units = _units(lens, model, tokens, layer).double().to(model.device)
    basis = torch.linalg.svd(units, full_matrices=False)
    basis = basis.Vh[basis.S / basis.S[0] > 1e-6]

    def without(x: torch.Tensor) -> torch.Tensor:
        return (x.double() - x.double() @ basis.T @ basis).to(x.dtype)

    return edits.apply(Site("resid", layer), without, positions)


def _units(lens: JacobianLens, model: Model, tokens: Sequence[int], layer: int) -> torch.Tensor:
    """Return (token, d) directions of length 1."""
    if (most := max(tokens)) >= model.info.d_vocab:
        raise ValueError(f"token={most}: {model.info.id} has ids below {model.info.d_vocab}")
    found = lens.directions(model, list(tokens), layer)
    size = found.norm(dim=1, keepdim=True)
    if not bool((size > 0).all()):
        raise ValueError(f"token={tokens[int(size.argmin())]} has no direction at layer {layer}: all of it is 0")
    return found / size
