"""Sites: the places of a model whose activations can be captured or edited."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..settings import checked, integer, one_of, refuse

if TYPE_CHECKING:
    from ..models.info import ModelInfo

SITES = {
    "resid": "residual stream after that many blocks, before any norm",
    "resid_mid": "residual stream inside a block, after attention is added and before the MLP",
    "attn_out": "what attention adds to the stream",
    "mlp_out": "what the MLP adds to the stream",
    "pattern": "attention weights (head, query, key) after the softmax",
    "query": "queries of all heads side by side, as attention uses them (rotated, before scaling)",
    "key": "keys of all heads side by side, as attention uses them (rotated); fewer heads with grouped queries",
    "value": "values of all heads side by side, as many heads as keys",
}


INNER = ("query", "key", "value")
"""Sites inside attention, offered where transformers' attention functions are used."""


_LENS_NAMES = {
    "resid_mid": "hook_resid_mid",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "pattern": "attn.hook_pattern",
    "query": "attn.hook_rot_q",
    "key": "attn.hook_rot_k",
    "value": "attn.hook_v",
}


@checked(name=one_of(*SITES), at=integer)
@dataclass(frozen=True, order=True)
class Site:
    """A place whose activations can be captured or edited.

    Attributes
    ----------
    name : str
        ``resid`` at a layer; ``resid_mid``, ``attn_out``, ``mlp_out``, ``pattern``, ``query``, ``key`` or ``value`` at
        a block.
    at : int
        The layer (blocks applied, 0..n_layers) for ``resid``, else the block (0..n_layers-1): what happens
        between layer ``at`` and layer ``at + 1``.

    Examples
    --------
    >>> Site("resid", 4).lens_name
    'blocks.3.hook_resid_post'
    >>> Site.parse("blocks.2.hook_mlp_out")
    Site(name='mlp_out', at=2)
    """

    name: str
    at: int

    def __post_init__(self) -> None:
        if self.at < 0:
            what = "layer" if self.name == "resid" else "block"
            refuse(
                "at", self.at, f"site {self.name} at {what} {self.at}: numbers start at 0 and never count from the end"
            )

    @property
    def lens_name(self) -> str:
        """The TransformerLens name of the same place."""
        if self.name == "resid":
            return f"blocks.{self.at - 1}.hook_resid_post" if self.at else "blocks.0.hook_resid_pre"
        return f"blocks.{self.at}.{_LENS_NAMES[self.name]}"

    @classmethod
    @checked()
    def parse(cls, text: str) -> Site:
        """Read ``"resid.4"``, ``"mlp_out.2"`` or a TransformerLens name.

        Raises
        ------
        ValueError
            If the text names no site.
        """
        if m := re.fullmatch(r"blocks\.(\d+)\.(hook_resid_pre|hook_resid_post)", text):
            return cls("resid", int(m[1]) + (m[2] == "hook_resid_post"))
        if m := re.fullmatch(r"blocks\.(\d+)\.(.+)", text):
            for name, lens in _LENS_NAMES.items():
                if lens == m[2]:
                    return cls(name, int(m[1]))
        if m := re.fullmatch(r"(\w+)\.(\d+)", text):
            return cls(m[1], int(m[2]))
        raise ValueError(
            f"text={text!r} names no site: write for example 'resid.4', 'mlp_out.2' or 'blocks.3.hook_resid_post'"
        )

    @property
    def depth(self) -> tuple[int, int]:
        """How far the pass must go: block needed, then place inside it (block -1: the input of block 0)."""
        if self.name == "resid":
            return (self.at - 1, 9)
        inside = {**dict.fromkeys(INNER, -1), "pattern": 0, "attn_out": 1, "resid_mid": 1, "mlp_out": 2}
        return (self.at, inside[self.name])

    def check(self, info: ModelInfo) -> None:
        """Raise ValueError if the model has no such layer or block."""
        last = info.n_layers if self.name == "resid" else info.n_layers - 1
        if self.at > last:
            what = "layer" if self.name == "resid" else "block"
            raise ValueError(f"site {self.name} at {what} {self.at}: {info.id} has {what}s 0 to {last}")


def sites_of(given: Sequence[Site | str] | Site | str | None, info: ModelInfo) -> list[Site]:
    """Return sites from sites, their names, or ``resid``, ``attn_out``, ... for all layers or blocks.

    Examples
    --------
    >>> import tokinterp as ti
    >>> [str(s.at) for s in sites_of("attn_out", ti.load_model().info)] == list("01234567")
    True
    """
    out: list[Site] = []
    for one in [given] if isinstance(given, Site | str) else ["resid"] if given is None else given:
        if isinstance(one, str) and one in SITES:
            out += [Site(one, n) for n in range(info.n_layers + (one == "resid"))]
        else:
            out.append(Site.parse(one) if isinstance(one, str) else one)
    return out


@checked()
def resid(layers: Sequence[int]) -> list[Site]:
    """Return the residual-stream sites of some layers.

    Parameters
    ----------
    layers : sequence of int
        Numbers of blocks applied.

    Examples
    --------
    >>> resid([0, 4])
    [Site(name='resid', at=0), Site(name='resid', at=4)]
    """
    return [Site("resid", layer) for layer in layers]
