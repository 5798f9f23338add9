"""The same texts in other tokens: words cut at given or random places, into characters or bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ..models.base import Model
from ..models.steady import steady
from ..results.dataset import bound_coord, check, variable
from ..results.stamp import stamped
from ..run.conditions import Condition
from ..run.sites import resid
from ..run.stream import stream
from ..settings import anything, checked, count, fraction, mapping, names, one_of, pair, refuse, several, string
from ..stats.resample import mean_interval
from ..text.marks import mark
from ..text.pieces import Pieces
from ..text.prompts import Prompts
from ..text.spans import Spans
from ..text.tokenise import Tokenised
from ..text.vocabulary import decode

if TYPE_CHECKING:
    from ..run.batch import Batch

WAYS = ("drawn", "characters", "bytes", "given")
CANONICAL = "canonical"
LOGITS = 2**26  # bytes of logits held at once
TRIES = 8  # draws of a word that came out as it was
ARNETT = "Arnett et al. 2024, Different tokenization schemes lead to comparable performance in Spanish number agreement"


@checked(how=one_of(*WAYS), share=fraction, pieces=count(1), min_letters=count(1), words=several(string, 1),
         given=mapping(several(string, 1)))  # fmt: skip
def resegment(
    prompts: Prompts, how: str = "drawn", *, share: float = 1.0, pieces: int | None = None, min_letters: int = 2,
    words: Sequence[str] | None = None, given: Mapping[str, Sequence[str]] | None = None, seed: int = 0,
) -> Prompts:  # fmt: skip
    """Cut the words of prompts into other tokens, which spell the same text.

    Parameters
    ----------
    prompts : Prompts
        With character offsets.
    how : {"drawn", "characters", "bytes", "given"}
        - ``drawn``: one of all ways to write the word in tokens of the vocabulary but its own, all equally likely,
        - ``characters``: a token for each character (its bytes, where it has none), the space before a word apart,
        - ``bytes``: a token for each byte,
        - ``given``: at the places of ``given``.
    share : float
        Of the words that are cut, drawn at random.
    pieces : int, optional
        Tokens of a word that is cut at random; any number by default.
    min_letters : int
        Shorter words stay as they are.
    words : sequence of str, optional
        The only ones that are cut.
    given : mapping of str to sequence of str
        Word -> its pieces, as ``{"perros": ["perro", "s"]}``, each of which must be a token (the first with the space
        before the word).  Other words stay.
    seed : int
        Of the draws, which depend neither on the other prompts nor on their order.

    Returns
    -------
    Prompts
        With the same texts, documents, and offsets of the new tokens, so that words and spans are found in them;
        ``origin`` says in which token of before each begins.  Tokens of words that were cut have the mark ``resplit``,
        all others but special ones the mark ``kept``.

    Raises
    ------
    ValueError
        If a word cannot be written so, or no word is cut.

    References
    ----------
    Zheng et al. 2025, arXiv 2506.19004 (random and character segmentations); Arnett et al. 2024 (given ones).

    Examples
    --------
    >>> import tokinterp as ti
    >>> prompts = ti.Prompts.from_texts(["The temperature fell."], ti.load_model())
    >>> ti.tokenizers.resegment(prompts, "given", given={"temperature": ["temper", "ature"]}).strings(0)[1:]
    ['The', ' temper', 'ature', ' f', 'ell', '.']
    """
    if (given is None) == (how == "given"):
        refuse("given", given, 'how="given" needs the pieces of words, the other ways none')
    if pieces is not None and how != "drawn":
        refuse("pieces", pieces, 'only words cut at random have a number of pieces: how="drawn"')
    spelled, only = _Speller(prompts, how, pieces, dict(given or {})), None if words is None else {*words}
    told = {"share": share, "pieces": pieces, "min_letters": min_letters, "words": words, "given": given}
    note = f"resegment({how}, {', '.join(f'{k}={v!r}' for k, v in told.items() if v is not None)}, seed={seed})"
    parts: list[tuple[np.ndarray, ...]] = []
    found = Spans.words(prompts).align(prompts)
    for i in range(len(prompts)):
        rows = np.flatnonzero(found.prompt == i)
        lucky = _generator(f"words(share={share!r}, seed={seed})", prompts.ids(i)).random(len(rows)) < share
        draw = _generator(note, prompts.ids(i))

        def spell(text: str, old: tuple[int, ...], draw: np.random.Generator = draw) -> tuple[int, ...]:
            word = text.strip()
            fits = len(word) >= min_letters and (only is None or word in only)
            return spelled(text, old, draw) if fits else old

        edges = [(int(found.start[r]), int(found.stop[r])) for r in rows[lucky]]
        parts.append(_rewritten(prompts, i, edges, spell))
    ids, offsets, origins, cut = zip(*parts, strict=True)
    starts = np.cumsum([0, *map(len, ids)])
    changed = np.concatenate(cut)
    if not changed.any():
        raise ValueError(f"how={how!r}: no word of the {len(prompts)} prompts was cut: give other texts or settings")
    whole = None if prompts._offsets is None else np.concatenate(offsets).astype(np.int32)
    new = Tokenised(
        np.concatenate(ids).astype(np.int32), starts.astype(np.int64), prompts.documents,
        prompts.window_starts, prompts.chars, prompts.half, whole, prompts.truncated, prompts.dropped,
    )  # fmt: skip
    notes = "; ".join(n for n in (prompts.note, note) if n)
    origin = np.concatenate(origins).astype(np.int32)
    out = Prompts(new, prompts.vocabulary, prompts._texts, bos=prompts.bos, note=notes, origin=origin)
    return _marked(out, changed)


def _marked(prompts: Prompts, changed: np.ndarray) -> Prompts:
    return mark(prompts, resplit=changed, kept=~changed & ~prompts.special_mask)


def _generator(note: str, ids: np.ndarray) -> np.random.Generator:
    data = hashlib.sha256(note.encode() + ids.astype("<i4").tobytes()).digest()
    return np.random.default_rng(int.from_bytes(data[:16], "little"))


class _Speller:
    """The other tokens of a word."""

    def __init__(self, prompts: Prompts, how: str, pieces: int | None, given: dict[str, Sequence[str]]) -> None:
        self.how, self.size, self.given = how, pieces, given
        vocabulary = prompts.vocabulary
        if vocabulary.tokenizer is None:
            raise ValueError("prompts: they were made without a tokenizer: give it to Prompts")
        self.pieces = Pieces(vocabulary)
        every = np.arange(vocabulary.known)
        every = every[~vocabulary.special(every)]
        self.single: dict[bytes, int] = {}
        for i, data in zip(every.tolist(), vocabulary.bytes(every), strict=True):
            if len(data) == 1:
                self.single.setdefault(data, i)

    def __call__(self, text: str, old: tuple[int, ...], draw: np.random.Generator) -> tuple[int, ...]:
        """Return the tokens of a word, with the space before it where its first token holds that."""
        word = text.strip()
        if self.how == "drawn":
            drawn = (self.pieces.cut(text, self.size, draw) for _ in range(TRIES))
            return next((new for new in drawn if new is not None and new != old), old)
        if self.how == "given":
            if word not in self.given:
                return old
            given = self.given[word]
            if "".join(given) != word:
                refuse(f"given[{word!r}]", given, "the pieces do not join to the word")
            parts = [text[: len(text) - len(text.lstrip())] + given[0], *given[1:]]
            if lacking := [p for p in parts if p not in self.pieces.id_of]:
                refuse(f"given[{word!r}]", given, f"{lacking[0]!r} is no token of the vocabulary")
            return tuple(self.pieces.id_of[p] for p in parts)
        out = []
        for part in text:
            if self.how == "characters" and part in self.pieces.id_of:
                out.append(self.pieces.id_of[part])
                continue
            raw = part.encode()
            if lacking := [b for b in raw if bytes([b]) not in self.single]:
                refuse("how", self.how, f"the vocabulary has no token for byte {lacking[0]:#04x} of {word!r}")
            out += [self.single[bytes([b])] for b in raw]
        return tuple(out)


def _rewritten(
    prompts: Prompts, i: int, edges: Sequence[tuple[int, int]], spell: Callable[..., tuple[int, ...]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (ids, offsets, origin, whether cut) of a prompt some of whose words, (start, stop), are spelled anew."""
    old, vocabulary = prompts.ids(i), prompts.vocabulary
    held = vocabulary.bytes(old)
    rows = slice(int(prompts.starts[i]), int(prompts.starts[i + 1]))
    known = np.zeros((len(old), 2), np.int64) if prompts._offsets is None else prompts._offsets[rows].astype(np.int64)
    parts: list[tuple[Any, Any, Any, Any]] = []
    at = 0
    for a, b in [*edges, (len(old), len(old))]:
        parts.append((old[at:a], known[at:a], np.arange(at, a), np.zeros(a - at, bool)))
        at, own, text = b, tuple(old[a:b].tolist()), b"".join(held[a:b]).decode("utf-8", "replace")
        new = spell(text, own) if a < b and "\ufffd" not in text else own
        if new == own:
            parts.append((old[a:b], known[a:b], np.arange(a, b), np.zeros(b - a, bool)))
            continue
        pieces = vocabulary.bytes(np.array(new))
        begins = np.cumsum([0, *map(len, pieces[:-1])])
        origin = a + np.searchsorted(np.cumsum([len(x) for x in held[a:b]]), begins, side="right")
        start, stop = int(known[a, 0]), int(known[b - 1, 1])
        extra = len(text) - (stop - start)  # a space that the tokenizer wrote before the text
        own_places = decode(pieces)[1].astype(np.int64) - extra if extra in (0, 1) else np.array([[0, stop - start]])
        places = np.broadcast_to(start + own_places.clip(0, stop - start), (len(new), 2))
        parts.append((np.array(new), places, origin, np.ones(len(new), bool)))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return columns[0], columns[1], columns[2], columns[3]


@checked(ways=names(*WAYS, least=1), share=fraction, pieces=count(1), min_letters=count(1), words=several(string, 1),
         given=mapping(several(string, 1)))  # fmt: skip
def segmentations(
    prompts: Prompts, ways: Sequence[str] = ("drawn", "characters", "bytes"), *, share: float = 1.0,
    pieces: int | None = None, min_letters: int = 2, words: Sequence[str] | None = None,
    given: Mapping[str, Sequence[str]] | None = None, seed: int = 0,
) -> dict[str, Condition]:  # fmt: skip
    """Return the conditions in which a model reads the same texts in other tokens, for `measure_conditions`.

    Parameters
    ----------
    prompts : Prompts
        As the tokenizer cuts them: the condition ``canonical``.
    ways : sequence of str
        See `resegment`; each becomes a condition of its name, all of the same words.
    share, pieces, min_letters, words, given, seed
        See `resegment`; ``pieces`` and ``given`` go to the way that takes them.

    Returns
    -------
    dict of str to Condition
        The mark ``kept`` has the same tokens under all conditions: those of words that none of them cuts, and all that
        is no word; ``resplit`` the tokens of words that some condition cuts.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The river runs through the old town, and then to the sea."], model)
    >>> conditions = ti.tokenizers.segmentations(prompts, ["drawn", "bytes"], share=0.5)
    >>> run = ti.measure_conditions(model, conditions, {"loss": ti.behaviour.TokenLoss("kept")}, progress=False)
    >>> run["loss"]["n_tokens"].values.ravel().tolist() == [run["loss"]["n_tokens"].values.max()] * 3
    True
    """
    made = {
        way: resegment(
            prompts, way, share=share, pieces=pieces if way == "drawn" else None, min_letters=min_letters, words=words,
            given=given if way == "given" else None, seed=seed,
        )
        for way in ways
    }  # fmt: skip
    cut = np.zeros(prompts.n_tokens, dtype=bool)
    place = {way: _place(p, prompts) for way, p in made.items()}
    for way, p in made.items():
        cut[place[way][p.marks["resplit"]]] = True
    word = _word_of(prompts)
    cut |= np.isin(word, word[cut]) & (word >= 0)  # the whole of it, also where no new token begins in an old one
    out = {CANONICAL: Condition(_marked(prompts, cut))}
    return out | {way: Condition(_marked(p, cut[place[way]])) for way, p in made.items()}


def _place(new: Prompts, old: Prompts) -> np.ndarray:
    """Return (token,) the token of the old prompts, all prompts counted on, in which each new one begins."""
    assert new.origin is not None
    return new.origin + np.repeat(old.starts[:-1], np.diff(new.starts))


def _word_of(prompts: Prompts) -> np.ndarray:
    """Return (token,) the number of the word that each token belongs to, -1 for none."""
    found = Spans.words(prompts).align(prompts)
    out = np.full(prompts.n_tokens, -1)
    for n, (i, a, b) in enumerate(zip(found.prompt.tolist(), found.start.tolist(), found.stop.tolist(), strict=True)):
        out[prompts.starts[i] + a : prompts.starts[i] + b] = n
    return out


@checked(pairs=several(pair(string, string), 1), ways=names(*WAYS, least=1), settings=anything)
@steady
def agreement(
    model: Model, pairs: Sequence[tuple[str, str]], ways: Sequence[str] = ("drawn", "characters", "bytes"), *,
    level: float = 0.95, **settings: Any,
) -> xr.Dataset:  # fmt: skip
    """Measure whether a model prefers the right text of minimal pairs, however their words are cut.

    Parameters
    ----------
    model : Model
        A causal model.
    pairs : sequence of (str, str)
        Right and wrong text, for example ``("los perros", "el perros")``.
    ways : sequence of str
        See `segmentations`.
    level : float
        Of the intervals, over pairs.
    **settings
        Of `segmentations`: ``words`` to cut (the nouns alone), ``given``, ``pieces``, ``share``, ``seed``.

    Returns
    -------
    xarray.Dataset
        On ``prompt`` (the pair) and ``condition``: ``log_odds``, log P(right) - log P(wrong), both in the tokens of the
        condition, and whether it is ``correct`` (half where equal).  On ``condition``: ``accuracy`` with
        ``accuracy_interval``.

    Raises
    ------
    ValueError
        For a pair whose first tokens differ where the model has no BOS: they have no probability.

    References
    ----------
    Arnett et al. 2024 (masked models); of causal models the whole text is scored.

    Examples
    --------
    >>> import tokinterp as ti
    >>> pairs = [("The dogs run.", "The dogs runs."), ("The rivers flow.", "The rivers flows.")]
    >>> ds = ti.tokenizers.agreement(ti.load_model(), pairs, ["bytes"], words=["dogs", "rivers"])
    >>> ds["accuracy"].dims, ds["condition"].values.tolist()
    (('condition',), ['canonical', 'bytes'])
    """
    prompts = Prompts.from_texts([t for both in pairs for t in both], model, progress=False)
    conditions = segmentations(prompts, ways, **settings)
    for name, c in conditions.items():
        assert isinstance(c.prompts, Prompts)
        begin = [int(c.prompts.ids(i)[0]) for i in range(len(c.prompts))]
        if odd := [k for k in range(len(pairs)) if begin[2 * k] != begin[2 * k + 1]]:
            refuse("pairs", pairs[odd[0]], f"the first tokens differ ({name}) and have no probability, as there is "
                   "no BOS: begin both texts with the same word")  # fmt: skip
    total = []
    with torch.no_grad():
        for c in conditions.values():
            assert isinstance(c.prompts, Prompts)
            walker = stream(model, c.prompts, resid([model.info.n_layers]))
            scores = np.full(len(c.prompts), np.nan)
            for numbers, found in walker.each(lambda batch: (batch.numbers, _log_prob(batch))):
                scores[numbers] = found.cpu().numpy()
            total.append(scores)
    log_prob = np.array(total).reshape(len(conditions), len(pairs), 2)
    odds = (log_prob[..., 0] - log_prob[..., 1]).T
    correct = np.where(np.isnan(odds), np.nan, (odds > 0) + 0.5 * (odds == 0))
    v = variable
    ds = xr.Dataset(
        {
            "log_odds": v(("prompt", "condition"), odds, "log-probability of the right text less that of the wrong one",
                          "nat", ARNETT, chance=0.0),
            "correct": v(("prompt", "condition"), correct, "whether the right text is the more probable one", "1"),
            "accuracy": v("condition", np.nanmean(correct, 0), "share of pairs whose right text is more probable", "1",
                          ARNETT, chance=0.5),
            "accuracy_interval": v(("bound", "condition"), mean_interval(correct, level=level),
                                   "interval of the accuracy", "1"),
        },
        {
            "prompt": v("prompt", np.arange(len(pairs)), "number of the pair", "1"),
            "condition": v("condition", np.array([*conditions]), "how words are cut", "1"),
            "bound": bound_coord(),
        },
        {"first": "accuracy, log_odds"},
    )  # fmt: skip
    told = {"pairs": pairs, "ways": ways, "level": level, **settings}
    ds = stamped(ds, "agreement", model, prompts.hash, told, settings.get("seed", 0))
    check(ds)
    return ds


def _log_prob(batch: Batch) -> torch.Tensor:
    """Return (prompt,) float64 log-probability of all tokens but the first."""
    x, told = batch.resid(batch.model.info.n_layers), batch.mask[:, 1:]
    row, at = told.nonzero(as_tuple=True)
    out = torch.zeros(len(batch), dtype=torch.float64, device=batch.device)
    every = torch.arange(len(row), dtype=torch.int64, device=batch.device)
    for some in every.split(max(1, LOGITS // (8 * batch.model.info.d_vocab))):
        logp = batch.model.unembed(x[row[some], at[some]]).double().log_softmax(-1)
        out.index_add_(0, row[some], logp.gather(1, batch.ids[row[some], at[some] + 1, None])[:, 0])
    return out
