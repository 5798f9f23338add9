"""What follows many sequences that begin alike: the keys and values of what they share are computed once."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from ..kernels.state import passing
from ..run.sites import Site

if TYPE_CHECKING:
    from .base import Model

BUDGET = 2**28  # bytes of keys, values and logits of a batch
Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values (head, position, d_head) of each block."""


class Continuations:
    """Log-probabilities of the token after sequences of ids, with a cache of the beginnings that they share.

    Whether the model gives the same with keys and values of before is tried first, with beginnings of several lengths
    in one batch; where it does not (no such cache, recurrent blocks), each sequence is run whole.

    Parameters
    ----------
    model : Model
        From `load_model` or `wrap`.

    Attributes
    ----------
    cached : bool
        Whether what is shared is computed once.
    rows, tokens : int
        Forward passes of one sequence, and tokens run in them, so far.

    Examples
    --------
    >>> import tokinterp as ti
    >>> from tokinterp.models.continuations import Continuations
    >>> after = Continuations(ti.load_model())
    >>> after.begin("the text", [0, 442, 1171, 323])
    >>> [tuple(p.shape) for p in after.log_probs([("the text", (0, 442)), ("the text", (0, 442, 1171, 263))])]
    [(4096,), (4096,)]
    >>> after.cached, after.rows
    (True, 3)
    """

    def __init__(self, model: Model) -> None:
        self.model, self.rows, self.tokens = model, 0, 0
        self.held: dict[Hashable, tuple[tuple[int, ...], Layers]] = {}
        self.cached, self._places = False, True
        for self._places in (True, False):
            if self._proves():
                self.cached = True
                break
        self.rows, self.tokens, self.held = 0, 0, {}

    def begin(self, key: Hashable, ids: Sequence[int]) -> None:
        """Keep what the model computes of a beginning, under a name, in the place of what was there."""
        ids = tuple(ids)
        if not self.cached or not ids or (key in self.held and self.held[key][0] == ids):
            return
        self.held[key] = (ids, self._layers(ids))

    def end(self, key: Hashable) -> None:
        """Let go of a beginning."""
        self.held.pop(key, None)

    def log_probs(self, asked: Sequence[tuple[Hashable, Sequence[int]]]) -> Iterator[torch.Tensor]:
        """Yield the (vocab,) float64 log-probabilities of the token after each sequence.

        Parameters
        ----------
        asked : sequence of (key, ids)
            Each sequence whole, and the name of a beginning with which it shares its first tokens, as many as it does.

        Raises
        ------
        ValueError
            If a sequence is longer than the context of the model.
        """
        at = 0
        while at < len(asked):
            n, shared = self._fitting(asked, at)
            part = asked[at : at + n]
            found = self._after(part, shared) if self.cached else self._whole([ids for _, ids in part])
            self.rows += n
            self.tokens += sum(len(ids) - k for (_, ids), k in zip(part, shared, strict=True))
            yield from found
            at += n

    def _fitting(self, asked: Sequence[tuple[Hashable, Sequence[int]]], at: int) -> tuple[int, list[int]]:
        """Return how many sequences make the next batch, and how many tokens each shares with its beginning."""
        info, shared, longest = self.model.info, [], 0
        for key, ids in asked[at:]:
            if not 0 < len(ids) <= info.max_tokens:
                raise ValueError(
                    f"a sequence of {len(ids)} tokens: {info.id} has a context of {info.max_tokens}, and needs one "
                    "token at least (BOS, or a text to follow)"
                )
            start = self.held.get(key, ((), []))[0]
            same = next((i for i, (a, b) in enumerate(zip(start, ids, strict=False)) if a != b), len(start))
            same = min(same, len(ids) - 1)
            longest = max(longest, len(ids))
            each = 4 * (2 * longest * info.d_model * info.n_layers + 2 * info.d_vocab * (len(ids) - same))
            if shared and (len(shared) + 1) * each > BUDGET:
                break
            shared.append(same)
        return len(shared), shared

    @torch.no_grad()
    def _after(self, part: Sequence[tuple[Hashable, Sequence[int]]], shared: Sequence[int]) -> list[torch.Tensor]:
        """Return what follows the sequences of a batch, from the keys and values of their beginnings."""
        device, most = self.model.device, max(shared)
        ends = [list(ids[k:]) for (_, ids), k in zip(part, shared, strict=True)]
        width = max(map(len, ends))
        ids = torch.tensor([e + [0] * (width - len(e)) for e in ends], dtype=torch.int64, device=device)
        start = torch.tensor(shared, dtype=torch.int64, device=device)
        place = torch.arange(most + width, dtype=torch.int64, device=device)
        mask = place >= most - start[:, None]  # the beginnings stand at the right, before what follows
        past: Layers | None = None
        if most:
            past = []
            for b in range(len(self._any(part))):
                rows = [self.held[key][1][b] if k else None for (key, _), k in zip(part, shared, strict=True)]
                shape = next(r for r in rows if r is not None)[0][:, :0]
                both = [
                    torch.stack([
                        pad(shape if r is None else r[side][:, :k], (0, 0, most - k, 0))
                        for r, k in zip(rows, shared, strict=True)
                    ])
                    for side in (0, 1)
                ]  # fmt: skip
                past.append((both[0], both[1]))
        logits = self._run(ids, mask, start[:, None] + place[:width], past).logits
        last = torch.tensor([len(e) - 1 for e in ends], dtype=torch.int64, device=device)
        found = logits[torch.arange(len(ends), dtype=torch.int64, device=device), last.to(device)]
        return list(found.double().log_softmax(-1))

    def _any(self, part: Sequence[tuple[Hashable, Sequence[int]]]) -> Layers:
        return next(self.held[key][1] for key, _ in part if key in self.held)

    @torch.no_grad()
    def _whole(self, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Return what follows sequences that are run whole."""
        device, width = self.model.device, max(map(len, sequences))
        ids = torch.tensor([[*s, *[0] * (width - len(s))] for s in sequences], dtype=torch.int64, device=device)
        last = torch.tensor([len(s) - 1 for s in sequences], dtype=torch.int64, device=device)
        site = Site("resid", self.model.info.n_layers)
        place = torch.arange(width, dtype=torch.int64, device=device)
        x = self.model.run(ids, [site], mask=place <= last[:, None])[site]
        row = torch.arange(len(ids), dtype=torch.int64, device=device)
        return list(self.model.unembed(x[row, last]).double().log_softmax(-1))

    @torch.no_grad()
    def _layers(self, ids: Sequence[int]) -> Layers:
        """Return the keys and values of one sequence."""
        row = torch.tensor([list(ids)], dtype=torch.int64, device=self.model.device)
        place = torch.arange(len(ids), dtype=torch.int64, device=row.device)[None]
        cache = self._run(row, torch.ones_like(row, dtype=torch.bool), place, None).past_key_values
        self.rows += 1
        self.tokens += len(ids)
        return [(layer.keys[0], layer.values[0]) for layer in cache.layers]

    def _run(self, ids: torch.Tensor, mask: torch.Tensor, places: torch.Tensor, past: Layers | None) -> Any:
        from transformers import DynamicCache

        model: Any = self.model
        cache = DynamicCache()  # of full layers: a window is kept by the mask
        for n, (keys, values) in enumerate(past or []):
            cache.update(keys, values, n)
        inputs: Mapping[str, Any] = {"position_ids": places} if self._places else {}
        with passing(model.lm):
            return model.forward(
                input_ids=ids, attention_mask=mask.long(), past_key_values=cache, use_cache=True, **inputs
            )  # fmt: skip

    def _proves(self) -> bool:
        """Whether beginnings of several lengths in one batch give what whole sequences give."""
        info = self.model.info
        n = min(12, info.max_tokens)
        if not hasattr(self.model, "lm") or n < 4:
            return False
        ids = [(7 * i + 1) % info.d_vocab for i in range(n)]
        asked = [(0, ids), (0, [*ids[: n // 2], ids[0]]), (0, ids[:2]), (1, [*ids[1 : n - 1], 0, 2][:n]), (2, ids[:3])]
        try:
            self.held = {0: (tuple(ids), self._layers(ids)), 1: (tuple(ids[1:-2]), self._layers(ids[1:-2]))}
            self.cached = True
            found = torch.stack(list(self.log_probs(asked)))
        except (TypeError, AttributeError, ValueError, KeyError, RuntimeError, IndexError, NotImplementedError):
            return False
        finally:
            self.cached = False
        known = torch.stack(self._whole([s for _, s in asked]))
        tolerance = getattr(self.model, "tolerance", 1e-4)
        return bool((found - known).abs().max() <= tolerance * known.abs().max())
