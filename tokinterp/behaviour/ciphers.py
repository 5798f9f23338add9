"""Substitution ciphers over tokens: how much of a prediction rests on what tokens are, and what contexts give back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..run.conditions import Condition
from ..run.measurement import Field, Measurement
from ..run.sites import resid
from ..settings import checked, count, none, several, short
from ..settings import probes as fitted_probes
from ..text.prompts import Prompts
from ..text.tokenise import Tokenised

if TYPE_CHECKING:
    from ..lens.jacobian import JacobianLens
    from ..lens.tuned_lens import TunedLens
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..run.sites import Site

HUANG = "Huang et al. 2023, Lexinvariant language models, arXiv 2305.16349"
TARGETS = ("plain", "plain next", "cipher", "cipher next")
LOGITS = 2**26
"""Bytes of logits held at once."""


@checked(symbols=several(count(), 2) | none, bands=count(1))
def cipher(prompts: Prompts, symbols: Sequence[int] | None = None, bands: int = 1, seed: int = 0) -> Prompts:
    """Write each prompt in a cipher of its own: a random bijection of tokens, the same throughout the prompt.

    Parameters
    ----------
    prompts : Prompts
        The plain text.
    symbols : sequence of int, optional
        Tokens that stand for one another, for example all single letters; by default all that are not special.  Others
        stay as they are.
    bands : int
        Symbols are exchanged within so many classes of equal size, by how often they occur in the prompts.
    seed : int
        A key is drawn for each prompt from this seed, the settings and the prompt's ids, so that it depends neither on
        the other prompts nor on their order (with bands, on how often all their tokens occur).

    Returns
    -------
    Prompts
        Of the same lengths, documents and marks.

    Raises
    ------
    ValueError
        For a symbol outside the vocabulary, twice, or special; for fewer than two symbols to a band.

    References
    ----------
    Huang et al. 2023, arXiv 2305.16349.

    Examples
    --------
    >>> plain = Prompts.from_ids([[5, 6, 5, 9]])
    >>> secret = cipher(plain, symbols=[5, 6, 7]).ids(0)
    >>> bool(secret[0] == secret[2]), int(secret[3])
    (True, 9)
    """
    own, note = _symbols(prompts, symbols), f"cipher({_named(symbols)}, bands={bands}, seed={seed})"
    often = np.bincount(prompts.token_ids, minlength=int(own.max()) + 1)[own]
    classes = np.array_split(own[np.argsort(-often, kind="stable")] if bands > 1 else own, bands)
    if min(map(len, classes)) < 2:
        raise ValueError(f"bands={bands}: {len(own)} symbols make no {bands} classes of two or more")
    size = int(max(own.max(), prompts.token_ids.max(initial=0))) + 1

    def keyed(ids: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        key = np.arange(size)
        for one in classes:
            key[one] = draw.permutation(one)
        return key[ids]

    return _each(prompts, keyed, note)


def _symbols(prompts: Prompts, symbols: Sequence[int] | None) -> np.ndarray:
    """Return the tokens that stand for one another, ascending."""
    vocabulary = prompts.vocabulary
    if symbols is None:
        own = vocabulary.ordinary if vocabulary.size > 1 else np.unique(prompts.token_ids)
        if len(own) < 2:
            raise ValueError("symbols=None: the size of the vocabulary is not known: make the prompts with a model")
        return own
    own = np.unique(np.asarray(symbols, np.int64))
    wrong = own[vocabulary.special(own) | ((own >= vocabulary.size) & (vocabulary.size > 1))]
    if len(own) < len(symbols) or len(wrong):
        what = f"{wrong[0]} is special, or no token" if len(wrong) else "a token stands there twice"
        raise ValueError(f"symbols={short(symbols)}: {what}: give different ordinary tokens")
    return own


def _named(symbols: Sequence[int] | None) -> str:
    if symbols is None:
        return "all tokens"
    told = hashlib.sha256(np.sort(np.asarray(symbols, "<i8")).tobytes()).hexdigest()[:8]
    return f"{len(symbols)} symbols {told}"


def _each(prompts: Prompts, change: Any, note: str) -> Prompts:
    """Return prompts whose ids are changed one prompt at a time, with random numbers of its own."""
    ids = prompts.token_ids.copy()
    for i in range(len(prompts)):
        here = prompts.ids(i)
        digest = hashlib.sha256(note.encode() + here.astype("<i4").tobytes()).digest()
        ids[prompts.starts[i] : prompts.starts[i + 1]] = change(
            here, np.random.default_rng(int.from_bytes(digest[:16], "little"))
        )
    bare = Tokenised.bare(ids, prompts.starts, prompts.truncated)
    parts = replace(bare, documents=prompts.documents, window_starts=prompts.window_starts)
    notes = "; ".join(n for n in (prompts.note, note) if n)
    out = Prompts(parts, prompts.vocabulary, bos=prompts.bos, note=notes)
    out.marks = prompts.marks
    return out


@checked(symbols=several(count(), 2) | none, bands=count(1))
def cipher_conditions(
    prompts: Prompts, symbols: Sequence[int] | None = None, bands: int = 1, seed: int = 0
) -> dict[str, Condition]:
    """Return prompts in plain text, in cipher, and with symbols that mean nothing.

    Parameters
    ----------
    prompts, symbols, bands, seed
        See `cipher`.

    Returns
    -------
    dict of str to Condition
        ``"plain"``; ``"cipher"``; ``"no key"``: each symbol replaced by one drawn anew at every place, so that nothing
        can be deciphered.  Add others of your own, such as ``Condition(cipher(prompts), model=untrained(model))``.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "Paris is in France, they say."], model)
    >>> conditions = ti.behaviour.cipher_conditions(prompts)
    >>> asked = {"found": ti.behaviour.Decipherment(prompts, layers=[0, 8])}
    >>> run = ti.measure_conditions(model, conditions, asked, progress=False)
    >>> run["found"]["share"].dims
    ('condition', 'prompt', 'layer', 'target', 'place')
    """
    own = _symbols(prompts, symbols)

    def redrawn(ids: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        return np.where(np.isin(ids, own), draw.choice(own, len(ids)), ids)

    return {
        "plain": Condition(prompts),
        "cipher": Condition(cipher(prompts, symbols, bands, seed)),
        "no key": Condition(_each(prompts, redrawn, f"no key({_named(symbols)}, seed={seed})")),
    }


@checked(symbols=several(count(), 2) | none, probes=fitted_probes | none)
class Decipherment(Measurement):
    """What is read of the plain text from a model that reads it in cipher, over the places of the prompt.

    Parameters
    ----------
    plain : Prompts, optional
        The plain text, prompt by prompt; by default what is read is the plain text itself.
    symbols : sequence of int, optional
        Tokens that stand for one another, see `cipher`: only they count, and only among them the most probable is
        looked for.
    layers : iterable of int, optional
        Layers that are read by the logit lens (final norm, then head); all by default.
    lens : TunedLens or JacobianLens, optional
        What is put before the final norm instead.
    probes : TokenProbes, optional
        Probes of offset 0 at all these layers, fitted to plain text (`tokinterp.erasure.fit_probes`): for
        ``probe_share``.

    Notes
    -----
    ``place`` are classes of positions of doubling size, named by their first: 0, 1, 2, 4, 8, ...  ``share`` is of the
    positions where one of four tokens is the most probable symbol: what stands there in the plain text ("plain") or in
    the cipher ("cipher"), and what comes next in either.  Under a uniform key that the reading knows nothing of, it is
    1 / n_symbols (attribute ``uniform_chance``) for "plain"; a reading that says frequent tokens without any key finds
    more.  That is ``share_null``: the mean over all pairs of a reading and the token of other places of the same prompt
    and class, exact, no draw.  ``loss`` is that of the next symbol of the cipher among the
    whole vocabulary, ``plain_loss`` that of the plain one; with the identity as key both are the model's own.

    References
    ----------
    Huang et al. 2023, arXiv 2305.16349.  The protocol for a trained model is ours.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> run = ti.measure(model, ["The Nile flows north."], {"found": Decipherment(layers=[0])}, progress=False)
    >>> run["found"]["target"].values.tolist()
    ['plain', 'plain next', 'cipher', 'cipher next']
    """

    first = ("share", "loss", "plain_loss", "probe_share")
    fields = {
        "share": Field(
            ("prompt", "layer", "target", "place"), "share of places where the token is the most probable symbol", "1",
            HUANG, short="most probable symbol", along=("place",),
        ),
        "share_null": Field(
            ("prompt", "layer", "target", "place"), "the same of readings at other places, mean over all pairs",
            short="of other places", range=(0, 1), along=("place",),
        ),
        "loss": Field(
            ("prompt", "place"), "mean cross-entropy of the next symbol of the cipher", "nat", HUANG,
            short="cross-entropy of the cipher", range=(0, None), along=("place",),
        ),
        "plain_loss": Field(
            ("prompt", "place"), "mean cross-entropy of the next symbol of the plain text", "nat",
            short="cross-entropy of the plain text", range=(0, None), along=("place",),
        ),
        "probe_share": Field(
            ("prompt", "layer", "place"), "share of places where the probe says the token of the plain text",
            short="probe says plain token", along=("place",),
        ),
        "probe_share_null": Field(
            ("prompt", "layer", "place"), "the same of the probe at other places, mean over all pairs",
            short="of other places", range=(0, 1), along=("place",),
        ),
        "n_places": Field(("prompt", "target", "place"), "places that count", "token"),
    }  # fmt: skip

    def __init__(
        self, plain: Prompts | None = None, symbols: Sequence[int] | None = None, layers: Iterable[int] | None = None,
        lens: TunedLens | JacobianLens | None = None, probes: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.plain, self.symbols, self.layers, self.lens, self.probes = plain, symbols, layers, lens, probes
        if probes is None:
            self.fields = {k: f for k, f in self.fields.items() if not k.startswith("probe")}

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the stream at the layers and at the last one."""
        return resid(sorted({*self.at_layers(info), info.n_layers}))

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check that plain text, lens and probes go with the prompts and the model."""
        super().begin(info, prompts)
        plain = prompts if self.plain is None else self.plain
        if plain.lengths != prompts.lengths:
            raise ValueError(
                f"plain={short(plain)}: its {len(plain)} prompts are not as long as the {len(prompts)} that are read: "
                "give the prompts that were ciphered"
            )
        if self.lens is not None:
            self.lens.check_use(info, self.at_layers(info))
        if self.probes is not None:
            self.probes.check_model(info)
            if lacking := [
                n for n in self.at_layers(info) if n not in self.probes.layers or 0 not in self.probes.offsets
            ]:
                raise ValueError(
                    f"probes={short(self.probes)}: there is none of layer {lacking[0]} and offset 0: layers="
                )
        known = prompts.vocabulary.size > 0 or self.symbols is not None
        own = _symbols(prompts, self.symbols) if known else np.arange(info.d_vocab)
        own = own[own < info.d_vocab]
        self._plain_ids, self._n_symbols = plain.token_ids, len(own)
        self._is_symbol = torch.zeros(info.d_vocab, dtype=torch.bool, device="cpu")
        self._is_symbol[torch.from_numpy(own.astype(np.int64))] = True
        self._classes = (max(prompts.lengths) - 1).bit_length() + 1

    def update(self, batch: Batch) -> None:
        """Read a batch layer by layer, some rows at a time."""
        layers, last, symbol = self.at_layers(), self.info.n_layers, self._is_symbol.to(batch.device)
        plain = batch.tokens.of_stream(self._plain_ids, -1).long().masked_fill(~batch.mask, -1)
        given = batch.ids.masked_fill(~batch.mask, -1)
        target = torch.stack([plain, _next(plain), given, _next(given)])
        target = target.masked_fill(~symbol[target.clamp_min(0)], -1)
        prompt, at = (target >= 0).any(0).nonzero(as_tuple=True)
        said = torch.full((2, len(layers), *plain.shape), -2, dtype=torch.int64, device=batch.device)
        loss = torch.zeros(2, *plain.shape, dtype=torch.float64, device=batch.device)
        every = torch.arange(len(prompt), dtype=torch.int64, device=batch.device)
        for some in every.split(max(1, LOGITS // (8 * self.info.d_vocab))):
            here = prompt[some], at[some]
            for n in {*layers, last}:
                x = batch.resid(n)[here]
                if n in layers and self.probes is not None:
                    said[1, layers.index(n)][here] = self.probes.predict(x, n, 0)[:, 0]
                moved = x if self.lens is None or n == last else self.lens.translate(x, n)
                z = batch.model.head(batch.model.normed(moved))
                if n == last:
                    total = z.double().logsumexp(-1)
                    for row, wanted in zip(loss, (target[3], target[1]), strict=True):
                        row[here] = total - z.gather(1, wanted[here].clamp_min(0)[:, None])[:, 0].double()
                if n in layers:
                    said[0, layers.index(n)][here] = z.masked_fill(~symbol, -torch.inf).argmax(-1)
        self.keep(batch, **self._shares(target, said, loss))

    def _shares(self, target: torch.Tensor, said: torch.Tensor, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what is kept of each prompt, from what should be and what is said (..., prompt, place)."""
        place = torch.arange(target.shape[2], dtype=torch.int64, device=target.device)
        kind = torch.frexp(place.double()).exponent.long().expand_as(target[0])  # of position: 0, 1, 2-3, 4-7, ...
        belongs = torch.nn.functional.one_hot(kind, self._classes).double()
        there = target >= 0

        def total(x: torch.Tensor) -> torch.Tensor:  # (..., prompt, place) -> (prompt, ..., class)
            return torch.einsum("...bt,btk->b...k", x.double(), belongs)

        n = total(there)
        out = {
            "n_places": n.long(),
            "share": total(said[0][:, None] == target) / n[:, None],
            "share_null": torch.stack([
                torch.stack([pairs(s, t, kind, self._classes) for t in target], 1) for s in said[0]
            ], 1),
            "loss": total(loss[0].masked_fill(~there[3], 0)) / n[:, 3],
            "plain_loss": total(loss[1].masked_fill(~there[1], 0)) / n[:, 1],
        }  # fmt: skip
        if self.probes is not None:
            out["probe_share"] = total(said[1] == target[0]) / n[:, :1]
            out["probe_share_null"] = torch.stack([pairs(s, target[0], kind, self._classes) for s in said[1]], 1)
        return out

    def coords(self) -> Mapping[str, Any]:
        """Return the tokens that are looked for, and the classes of positions."""
        start = np.r_[0, 2 ** np.arange(self._classes - 1)]
        return {
            "target": (np.array(TARGETS), "token that is looked for", "1"),
            "place": (start, "first position of the class, BOS counted", "token"),
        }

    def attributes(self) -> Mapping[str, Any]:
        """Return the number of symbols, and the share that a uniform key gives."""
        return {"n_symbols": self._n_symbols, "uniform_chance": 1 / self._n_symbols}


def _next(ids: torch.Tensor) -> torch.Tensor:
    """Return what stands one place later, -1 at the end."""
    return torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-1)


def pairs(said: torch.Tensor, wanted: torch.Tensor, kind: torch.Tensor, classes: int) -> torch.Tensor:
    """Return (prompt, class) how often a reading is what is wanted at another place of its prompt and class.

    Parameters
    ----------
    said, wanted, kind : torch.Tensor
        (prompt, place) tokens, and the class of each place; places where nothing is wanted, -1, take no part.
    classes : int
        How many classes there are.

    Returns
    -------
    torch.Tensor
        Mean over all pairs of two places; NaN for fewer than two.

    Examples
    --------
    >>> said, wanted = torch.tensor([[5, 5, 6]]), torch.tensor([[5, 6, 6]])
    >>> pairs(said, wanted, torch.zeros(1, 3, dtype=torch.int64), 1).tolist()
    [[0.3333333333333333]]
    """
    there, rows = wanted >= 0, torch.arange(len(said), dtype=torch.int64, device=said.device)[:, None]
    cell = (rows * classes + kind)[there]
    width = int(torch.stack([said.amax(), wanted.amax()]).amax()) + 1
    keys = torch.cat([cell * width + said[there], cell * width + wanted[there]])
    known, number = keys.unique(return_inverse=True)
    half = len(cell)
    counts = [torch.bincount(part, minlength=len(known)).double() for part in (number[:half], number[half:])]
    out = torch.zeros(len(said) * classes, dtype=torch.float64, device=said.device)
    out.index_add_(0, known // width, counts[0] * counts[1])
    n = torch.bincount(cell, minlength=len(out)).double()
    own = torch.bincount(cell[(said == wanted)[there]], minlength=len(out)).double()
    return ((out - own) / (n * (n - 1))).view(len(said), classes)
