"""The one hook engine: run a Hugging Face causal LM with sites captured and edited."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..kernels.state import passing
from ..run.edits import Edit, KnockOut, Renumber, SiteEdit
from ..run.sites import SITES, Site
from ..settings import anything, checked, instance, none, refuse, several, short, tokenizer
from ..settings.describe import numbered
from . import attention, proof
from .base import Activations
from .fingerprint import Identified
from .info import ModelInfo
from .modules import Head, Modules, Parts, size_of, submodule
from .rope import check_lengths, dynamic_ropes, length_steps, reset, run_plain
from .site_hooks import StopPassError, hook_sites

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-7, torch.bfloat16: 6e-2, torch.float16: 1e-2}


class HookedLM(Identified):
    """A causal LM whose sites can be captured and edited; what ``load_model`` and ``wrap`` return.

    Attributes
    ----------
    info : ModelInfo
        What decides the numbers.
    tokenizer
        The model's tokenizer, or None.
    lm : torch.nn.Module
        The Hugging Face causal LM that is hooked.
    source
        The object that was wrapped: the same model, a TransformerBridge or an nnsight LanguageModel.
    offered : dict of str to tuple of int
        Site -> layers or blocks in which it was verified by value, ascending; a site without any is not in it.
    withheld : dict of str to str
        Site -> why some or all blocks do not offer it, in a few words, where that is known.
    length_steps : tuple of int
        Lengths beyond which the model computes a whole batch otherwise (LongRoPE); batches never lie across one.
    adds : list of (str or None, str or None)
        Of each block, the modules whose outputs are added to the stream: attention and MLP, found by value.
    """

    @checked(lm=instance("Module"), tokenizer=tokenizer | none, source=anything)
    def __init__(self, lm: nn.Module, tokenizer: Any, modules: Modules, info: ModelInfo, source: Any = None) -> None:
        self.lm, self.tokenizer, self.modules, self.info = lm, tokenizer, modules, info
        self.source = lm if source is None else source
        self.config: Any = lm.config.get_text_config()  # type: ignore[operator,union-attr]
        self._head = Head(lm, modules, self.config)
        self.length_steps = length_steps(self.config)
        self._ropes = dynamic_ropes(lm)
        self._blocks: list[nn.Module] = list(submodule(lm, modules.blocks))
        self._runs: list[int] = list(range(info.n_layers))
        self.adds: list[Parts] = [(None, None)] * info.n_layers
        self.offered: dict[str, tuple[int, ...]] = {"resid": tuple(range(info.n_layers + 1))}
        self.withheld: dict[str, str] = {}
        self.attention = attention.Attention(self, max(self.tolerance, 1e-3))
        with passing(self.lm):
            self._verify()
        self._begin()

    def __repr__(self) -> str:
        i = self.info
        size = f"{i.n_layers} blocks, d_model {i.d_model}"
        return f"{i.id} ({i.architecture}, {size}, {i.dtype} on {i.device}, {i.backend})"

    @property
    def offers(self) -> frozenset[str]:
        """Names of the sites that at least one layer or block has; ``offered`` says which."""
        return frozenset(self.offered)

    def _assume(self, *names: str, blocks: Iterable[int] | None = None) -> None:
        """Say that blocks (all by default) offer these sites."""
        found = tuple(range(self.info.n_layers)) if blocks is None else tuple(sorted(set(blocks)))
        self.offered = self.offered | dict.fromkeys(names, found) if found else self.offered

    def _withhold(self, *names: str, why: str = "") -> None:
        """Say that no block offers these sites."""
        self.offered = {n: b for n, b in self.offered.items() if n not in names}
        self.withheld = self.withheld | dict.fromkeys(names, why) if why else self.withheld

    @property
    def device(self) -> torch.device:
        """Device on which ids are expected and activations are returned."""
        return size_of(self.lm.get_input_embeddings())[1]  # type: ignore[operator]

    @checked()
    def normed(self, resid: torch.Tensor) -> torch.Tensor:
        """Return the final norm of points of the stream (..., d_model)."""
        return self._head.normed(resid).to(self.device)

    @checked()
    def head(self, normed: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (..., d_vocab) of already normed points."""
        return self._head.logits(normed).to(self.device)

    @checked()
    def unembed(self, resid: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (..., d_vocab) of points of the stream: final norm, head, scaling, soft cap."""
        return self.head(self._head.normed(resid))

    @checked()
    def written_norm(self, block: int, value: torch.Tensor) -> torch.Tensor:
        """Return (prompt, head, position) norm ||v W_O|| of what each head of a block would write of its values."""
        with passing(self.lm):
            return self.attention.written_norm(block, value)

    def writes(self, block: int, like: torch.Tensor) -> attention.Writes:
        """Return what a block makes of the values that its heads mix; ``like`` says in which dtype and where."""
        with passing(self.lm):
            return self.attention.writes(block, like)

    @checked(sites=several(instance("Site"), 1))
    def run(
        self,
        ids: torch.Tensor,
        sites: Sequence[Site],
        *,
        mask: torch.Tensor | None = None,
        edits: Sequence[Edit] = (),
        position_ids: torch.Tensor | None = None,
        consume: Callable[[Site, torch.Tensor], None] | None = None,
        graph: bool = False,
    ) -> Activations:
        """Run right-padded ids and return the activations of the sites.

        Parameters
        ----------
        ids : torch.Tensor
            (prompt, position) int64, right padded.
        sites : sequence of Site
            What to return. The pass stops after the deepest one; the LM head is not run.
        mask : torch.Tensor, optional
            (prompt, position) bool, true on real tokens; only edits need it, because padding on the right cannot
            reach real positions of a causal model.
        edits : sequence of Edit
            What to change, in this order at each site; a site shows its own edits.
        position_ids : torch.Tensor, optional
            (prompt, position) places in the sequence, where they are not 0, 1, 2, ...
        consume : callable, optional
            Called with (site, tensor) as each is reached; then nothing is kept and an empty dictionary is returned.
        graph : bool
            Keep what gradients of one site with respect to another need (``torch.autograd.grad``), also where the
            weights are frozen; each activation stays on the device of its layer.

        Returns
        -------
        dict
            Site -> tensor on ``self.device``: (prompt, position, d_model), or (prompt, head, query, key) for
            ``pattern``, or (prompt, position, heads * d_head) for ``query``, ``key`` and ``value``, where keys and
            values may have fewer heads than queries (grouped).  Not copies: change them only
            after ``clone()``.

        Raises
        ------
        ValueError
            For a site the model does not have, ids out of vocabulary, a mask that pads on the left, or an edit that
            does not fit.

        Examples
        --------
        >>> import torch, tokinterp as ti
        >>> model = ti.load_model()
        >>> acts = model.run(torch.tensor([[0, 5, 6]]), [ti.Site("resid", 1)])
        >>> tuple(acts[ti.Site("resid", 1)].shape) == (1, 3, model.info.d_model)
        True
        """
        wanted = list(dict.fromkeys(sites))
        ids = ids.to(self.device)
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(self.device).bool()
        self._check(ids, mask, wanted, edits)
        self._check_places(ids, mask, position_ids)
        edits = [e.settle(ids, mask) for e in edits]
        cuts = self._cuts([e for e in edits if isinstance(e, KnockOut)], ids, mask)
        kept: Activations = {}
        given: set[Site] = set()

        def give(site: Site, value: torch.Tensor) -> None:
            given.add(site)
            if not graph:
                value = value.to(self.device)
            elif not value.requires_grad:  # nothing before it is trained: the graph begins here
                value.requires_grad_()
            if consume is None:
                kept[site] = value
            else:
                consume(site, value)

        places: torch.Tensor | None = None
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if position_ids is not None:
            proof.check_places(self._reads_positions, self.info.architecture)
            # A mask of ones keeps transformers from reading gaps in the positions as packed sequences.
            places = position_ids.to(self.device)
            inputs |= {"position_ids": places, "attention_mask": torch.ones_like(ids)}
            if torch.equal(places, torch.arange(ids.shape[1], device=ids.device, dtype=torch.int64).expand_as(ids)):
                places = None
            else:
                self.attention.check_places(places)
        with passing(self.lm), torch.set_grad_enabled(graph), ExitStack() as stack:
            looks = hook_sites(self, stack, wanted, edits, cuts, ids, mask, give)
            if looks or (places is not None and self.attention.way == "function"):
                self.attention.listen(stack, looks, ids, mask, places)
            with suppress(StopPassError):
                self.forward(**inputs)
        if missing := [s for s in wanted if s not in given]:
            raise ValueError(
                f"site {missing[0].name} at {missing[0].at} of {self.info.architecture} was not reached in the pass: "
                "its module did not run, or was called past its hooks"
            )
        return kept

    def forward(self, **inputs: Any) -> Any:
        """Run the Hugging Face model itself, as if it had run nothing before; compiled modules run eagerly."""
        reset(self._ropes)
        return run_plain(self.lm, inputs)

    def notes(self, sites: Sequence[Site]) -> dict[str, str]:
        """Return what a result of these sites has to say of the model, as attributes."""
        shown = {s.at for s in sites if s.name == "pattern"}
        if not (blocks := sorted(shown & set(self.attention.sinks))):
            return {}
        where = f"block{'s' * (len(blocks) > 1)} {numbered(blocks)}"
        return {"attention_sinks": f"{where}: a learned sink takes a share: the weights of a query sum to less than 1"}

    def _cuts(self, edits: Sequence[KnockOut], ids: torch.Tensor, mask: torch.Tensor) -> dict[int, torch.Tensor]:
        """Return block -> (prompt, 1 or head, query, key) bool, edges to remove; one tensor for equal blocks."""
        made: dict[tuple[int, int], torch.Tensor] = {}
        joint: dict[tuple[tuple[int, int], ...], torch.Tensor] = {}
        cuts: dict[int, torch.Tensor] = {}
        for b in range(self.info.n_layers):
            here = [e for e in edits if e.blocks is None or b in e.blocks]
            keys = tuple((edits.index(e), self.attention.heads(b) if e.heads is not None else 1) for e in here)
            for e, key in zip(here, keys, strict=True):
                if key not in made:
                    made[key] = e.edges(ids, mask, key[1])
            if keys and keys not in joint:
                cut = made[keys[0]]
                for key in keys[1:]:
                    cut = cut | made[key]
                joint[keys] = cut
            if keys and bool(joint[keys].any()):
                cuts[b] = joint[keys]
        return cuts

    def _check(self, ids: torch.Tensor, mask: torch.Tensor, wanted: list[Site], edits: Sequence[Edit]) -> None:
        """Refuse what cannot be run, before anything is."""
        if not wanted:
            refuse("sites", [], "no site to capture: name at least one, for example Site('resid', 0)")
        if ids.ndim != 2 or ids.numel() == 0:
            raise ValueError(f"ids={short(ids)}: (prompt, position) with at least one token is needed")
        if ids.shape[1] > self.info.max_tokens:
            raise ValueError(
                f"ids={short(ids)}: prompt of {ids.shape[1]} tokens: {self.info.id} has a context of "
                f"{self.info.max_tokens}; truncate or "
                "window the text (Prompts.from_texts(..., max_tokens=, on_long=))"
            )
        low, high = (int(v) for v in torch.aminmax(ids))
        if low < 0 or high >= self.info.d_vocab:
            raise ValueError(
                f"ids: token id {low if low < 0 else high} is out of vocabulary: {self.info.id} has ids 0 to "
                f"{self.info.d_vocab - 1}; were the ids made with another tokenizer?"
            )
        if not bool(mask[:, 0].all()) or bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            raise ValueError(f"mask={short(mask)}: the mask is not right padded: real tokens first, padding after them")
        self.check(wanted, edits)
        for e in edits:
            if isinstance(e, SiteEdit):
                e.check(ids.shape[1], self.attention.width(e.site) or self.info.d_model, ids.shape[0])

    def _check_places(self, ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor | None) -> None:
        """Refuse places beyond the context, and a batch that rotary embeddings would compute as another one."""
        places = torch.arange(ids.shape[1], device=ids.device, dtype=torch.int64).expand(ids.shape)
        if position_ids is not None:
            if tuple(position_ids.shape) != tuple(ids.shape):
                raise ValueError(f"position_ids have shape {tuple(position_ids.shape)}, the ids {tuple(ids.shape)}")
            places = position_ids.to(ids.device)
            if not 0 <= int(places.min()) <= int(places.max()) < self.info.max_tokens:
                raise ValueError(
                    f"position_ids lie between {int(places.min())} and {int(places.max())}: {self.info.id} has places "
                    f"0 to {self.info.max_tokens - 1}"
                )
        if self.length_steps:
            longest = torch.where(mask, places, -1).amax(1) + 1
            check_lengths(self.length_steps, longest, int(places.max()) + 1)

    @checked(sites=several(instance("Site")))
    def check(self, sites: Sequence[Site], edits: Sequence[Edit] = ()) -> None:
        """Raise ValueError if the model lacks one of the sites, or an edit names a site, block or head it has not."""
        for site in [*sites, *(e.site for e in edits if isinstance(e, SiteEdit))]:
            site.check(self.info)
            self._check_offered(site.name, [s.at for s in sites if s.name == site.name] or [site.at])
        for e in edits:
            if isinstance(e, Renumber):
                proof.check_places(self._reads_positions, self.info.architecture)
            elif not isinstance(e, SiteEdit | KnockOut):
                raise TypeError(
                    f"{type(e).__name__} is no edit: make one with tokinterp.run.edits.replace, add, zero, ..."
                )
            if isinstance(e, KnockOut):
                self.attention.knock_outs.check(e)

    def _check_offered(self, name: str, at: Sequence[int]) -> None:
        """Raise ValueError if not all of these layers or blocks offer the site: says which do and why others do not."""
        have = self.offered.get(name)
        if have is None:
            raise ValueError(
                f"site {name} is not available for {self.info.architecture}: it offers "
                f"{', '.join(n for n in SITES if n in self.offered)}" + self._why_not(name)
            )
        if lacking := sorted(set(at) - set(have)):
            raise ValueError(
                f"site {name} is not available in block{'s' * (len(lacking) > 1)} {numbered(lacking)} of "
                f"{self.info.architecture}{self._why_not(name)}: take only those that have it, "
                f"blocks=[{', '.join(map(str, have))}]"
            )

    def _why_not(self, name: str) -> str:
        return f" ({why})" if (why := self.withheld.get(name)) else _why_not(name)

    # -- proof by value ---------------------------------------------------------------------------------------
    def _verify(self) -> None:
        """Check by value that hooks and head are where they should be, and find which sites there are."""
        ids = proof.some_ids(self, 2, 8)
        own, seen = proof.watched(self, ids)
        self._runs = proof.check_stream(self, own, seen)
        proof.check_head(self, ids, own)
        proof.offer_parts(self, seen)
        proof.check_causal(self)
        self.attention.prove(ids)

    @property
    def tolerance(self) -> float:
        """How far equal numbers may be apart in the dtype of the weights, as a share of their range."""
        return TOLERANCE.get(getattr(torch, self.info.dtype), 6e-2)

    @cached_property
    def _reads_positions(self) -> bool:
        return proof.reads_positions(self)


def _why_not(name: str) -> str:
    if name == "resid_mid":
        return " (its attention and MLP work in parallel, so there is no stream between them)"
    return " (the blocks do not add these parts to the stream one by one)" if name in ("attn_out", "mlp_out") else ""
