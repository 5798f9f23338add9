"""What can be changed during a pass: values at a site, and edges of the attention graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...settings import checked, function, instance, none, number
from ...settings import positions as some_positions
from ..sites import Site
from .at_sites import Patch, SiteEdit, donors
from .edges import KnockOut, knock_out
from .places import Renumber, renumber
from .positions import Positions, as_tensor, select_positions

Edit = SiteEdit | KnockOut | Renumber


@checked(value=instance("Tensor") | number())
def replace(site: Site, value: torch.Tensor | float, positions: Positions = None) -> SiteEdit:
    """Put ``value``, a tensor that broadcasts to them or one number, in the place of the activations of a site.

    Which positions: numbers count from the start, ``slice(-1, None)`` is the last token of each prompt; see
    `tokinterp.run.edits.positions.Positions`.

    Parameters
    ----------
    site : Site
        Where.
    value : torch.Tensor or float
        What stands there instead.
    positions : Positions
        Which tokens: None means all, ``[1, 2]`` these of every prompt, ``slice(-1, None)`` the last of each prompt, a
        name those with this mark (`tokinterp.text.mark`), a bool array one for each token of all prompts.

    Examples
    --------
    >>> import torch, tokinterp as ti
    >>> edit = ti.edits.replace(ti.Site("resid", 2), torch.zeros(64), positions=[3])
    >>> edit.op
    'replace'
    """
    return SiteEdit(site, "replace", positions, as_tensor(value))


@checked(value=instance("Tensor") | number())
def add(site: Site, value: torch.Tensor | float, positions: Positions = None) -> SiteEdit:
    """Add ``value``, a tensor or one number, to the activations of a site.

    Parameters
    ----------
    site : Site
        Where.
    value : torch.Tensor or float
        What is added.
    positions : Positions
        Which tokens: None means all, ``[1, 2]`` these of every prompt, ``slice(-1, None)`` the last of each prompt, a
        name those with this mark (`tokinterp.text.mark`), a bool array one for each token of all prompts.

    Examples
    --------
    >>> import torch, tokinterp as ti
    >>> ti.edits.add(ti.Site("resid", 2), torch.ones(64), positions=[3]).op
    'add'
    """
    return SiteEdit(site, "add", positions, as_tensor(value))


@checked()
def zero(site: Site, positions: Positions = None) -> SiteEdit:
    """Set the activations of a site to zero.

    Parameters
    ----------
    site : Site
        Where.
    positions : Positions
        Which tokens: None means all, ``[1, 2]`` these of every prompt, ``slice(-1, None)`` the last of each prompt, a
        name those with this mark (`tokinterp.text.mark`), a bool array one for each token of all prompts.

    Examples
    --------
    >>> import tokinterp as ti
    >>> str(ti.edits.zero(ti.Site("mlp_out", 3)))
    'zero(mlp_out 3)'
    """
    return SiteEdit(site, "zero", positions)


@checked()
def mean_ablate(site: Site, positions: Positions = None, mean: torch.Tensor | None = None) -> SiteEdit:
    """Put a mean in the place of the activations of a site.

    Parameters
    ----------
    site : Site
        Where.
    positions : Positions
        Which tokens: None means all, ``[1, 2]`` these of every prompt, ``slice(-1, None)`` the last of each prompt, a
        name those with this mark (`tokinterp.text.mark`), a bool array one for each token of all prompts.
    mean : torch.Tensor, optional
        (d_model,) or (position, d_model), for example a mean over a corpus.  Without it each prompt's own mean over
        its real positions is used, so that the result does not depend on the other prompts of a batch.

    Examples
    --------
    >>> import tokinterp as ti
    >>> ti.edits.mean_ablate(ti.Site("attn_out", 1)).op
    'mean'
    """
    return SiteEdit(site, "mean", positions, mean)


@checked(factor=number())
def scale(site: Site, factor: float, positions: Positions = None) -> SiteEdit:
    """Multiply the activations of a site by a number; 0 is :func:`zero`, 1 changes nothing.

    Parameters
    ----------
    site : Site
        Where.
    factor : float
        By what.
    positions : Positions
        Which tokens: None means all, ``[1, 2]`` these of every prompt, ``slice(-1, None)`` the last of each prompt, a
        name those with this mark (`tokinterp.text.mark`), a bool array one for each token of all prompts.

    Examples
    --------
    >>> import tokinterp as ti
    >>> str(ti.edits.scale(ti.Site("mlp_out", 1), 0.5, positions=slice(-1, None)))
    'scale(mlp_out 1, by 0.5, positions -1::)'
    """
    return SiteEdit(site, "scale", positions, torch.tensor(factor, dtype=torch.float64, device="cpu"))


@checked(value=instance("Tensor"))
def fill(site: Site, value: torch.Tensor, positions: Positions) -> SiteEdit:
    """Put values at the chosen positions of each prompt, in order: the first gets ``value[0]``, wherever it stands.

    Parameters
    ----------
    site : Site
        Where.
    value : torch.Tensor
        (chosen position, d_model), for example a mean over prompts, place by place.
    positions : Positions
        Which; no prompt may have more of them than there are values.

    Examples
    --------
    >>> import torch, tokinterp as ti
    >>> model = ti.load_model()
    >>> edit = ti.edits.fill(ti.Site("resid", 2), torch.zeros(1, model.info.d_model), slice(-1, None))
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "Paris."], model)
    >>> batch = ti.capture(model, prompts, [0, 1], [ti.Site("resid", 2)], [edit])
    >>> (batch.rows(2).abs().sum(1) == 0).nonzero()[:, 0].tolist() == [prompts.lengths[0] - 1, prompts.n_tokens - 1]
    True
    """
    return SiteEdit(site, "fill", positions, value)


@checked(function=function)
def apply(site: Site, function: Callable[[torch.Tensor], torch.Tensor], positions: Positions = None) -> SiteEdit:
    """Put what a function makes of the activations of a site in their place: a projection, a dictionary, a rounding.

    Parameters
    ----------
    site : Site
        Where.
    function : callable
        Of (prompt, position, d) activations on the model's device, in its dtype; returns the same shape.  Each prompt
        is looked at by itself, padding left aside: what differs when the first prompt of a batch stands alone, or is
        drawn anew in each call, is refused.  A run is known by its code and what it captures.
    positions : Positions
        Where what it returns counts; None means everywhere.

    Raises
    ------
    ValueError
        In the first batch, if the function returns another shape or looks at other prompts.

    Examples
    --------
    >>> import torch, tokinterp as ti
    >>> model = ti.load_model()
    >>> first = torch.zeros(model.info.d_model).index_fill(0, torch.tensor([0]), 1.0)
    >>> without = ti.edits.apply(ti.Site("resid", 2), lambda x: x - (x @ first)[..., None] * first)
    >>> batch = ti.capture(model, ti.Prompts.from_texts(["The Nile."], model), [0], [ti.Site("resid", 2)], [without])
    >>> bool((batch.rows(2)[:, 0] == 0).all())
    True
    """
    return SiteEdit(site, "apply", positions, None, function)


@checked(donor=donors, source=some_positions, prompts=instance("Prompts") | none)
def patch(
    site: Site, positions: Positions = None, *, donor: int | Mapping[int, int] | Sequence[int],
    source: Positions = None, prompts: Any = None,
) -> Patch:  # fmt: skip
    """Put what a site has in another prompt of the run in the place of its activations (activation patching).

    Parameters
    ----------
    site : Site
        Where; the donor is run as it is, without edits, as far as this site.
    positions : Positions
        Which positions are changed; None means all.
    donor : int, mapping or sequence of int
        The prompt that gives, by its number in the run: one for all, a mapping of prompt to donor (prompts that are not
        in it are left alone), or one for each prompt.
    source : Positions
        Where in the donor: the first chosen place gives to the first changed one, and so on.  None means the same
        places.
    prompts : Prompts, optional
        Other prompts, of which the donors are: the clean ones where the run has corrupted ones.

    Raises
    ------
    ValueError
        Before anything is run: for a prompt that does not exist, or places that the donor does not have.

    References
    ----------
    Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "The Rhine flows north."], model)
    >>> last = slice(-1, None)
    >>> swap = ti.edits.patch(ti.Site("resid", 2), last, donor=[1, 0], source=last)
    >>> a, b = (ti.capture(model, prompts, [0, 1], [ti.Site("resid", 2)], edits) for edits in ([], [swap]))
    >>> bool((a.rows(2)[-1] == b.rows(2)[a.lengths[0] - 1]).all())
    True
    """
    return Patch(site, "patch", positions, None, None, donor, source, prompts)


__all__ = [
    "Edit", "KnockOut", "Patch", "Positions", "Renumber", "SiteEdit", "add", "apply", "fill", "knock_out",
    "mean_ablate", "patch", "renumber", "replace", "scale", "select_positions", "zero",
]  # fmt: skip
