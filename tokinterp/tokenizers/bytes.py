"""Probabilities of the next byte that do not depend on where a text was cut into tokens, and how far others do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import xarray as xr

from ..models.base import Model
from ..models.steady import current, steady
from ..results.dataset import check, variable
from ..results.stamp import joined, stamped
from ..settings import checked, count, model, none, number, refuse, several, some_strings
from ..settings.describe import digest
from .bytes_covers import END, Next
from .bytes_reader import Reader

PHAN = "Phan et al. 2024, Exact byte-level probabilities from tokenized language models, arXiv 2410.09303"
MIX = "mean"
_MODELS = model | several(model, 1)


def _named(models: Model | Sequence[Model]) -> dict[str, Model]:
    """Return models by their names; number those of one name."""
    given: list[Any] = [*models] if isinstance(models, Sequence) else [models]
    ids = [m.info.id for m in given]
    return {i if ids.count(i) == 1 else f"{i} ({n})": m for n, (i, m) in enumerate(zip(ids, given, strict=True))}


def _weighted(weights: Sequence[float] | None, n: int) -> np.ndarray:
    if weights is not None and (len(weights) != n or sum(weights) <= 0):
        refuse("weights", weights, f"give {n} of them, one for each model, not all of them 0")
    found = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    return found / found.sum()


def _contexts(context: Any, n: int) -> list[Any]:
    if context is not None and n > 1:
        refuse("context", context, "several models have no ids in common: leave it out")
    return [context] * n


def _variation(a: np.ndarray, b: np.ndarray) -> float:
    return float(0.5 * np.abs(a - b).sum())


def _normal(found: Next) -> np.ndarray:
    """Return the distribution of the next byte among texts that can be encoded."""
    total = found.exact.sum()
    return found.exact / total if total > 0 else np.full(END + 1, np.nan)


@checked(
    models=_MODELS, texts=some_strings, after=some_strings | none, context=several(count()), weights=several(number(0))
)
@steady
def byte_probabilities(
    models: Model | Sequence[Model], texts: Sequence[str], *, after: Sequence[str] | None = None,
    context: Sequence[int] | None = None, weights: Sequence[float] | None = None,
) -> xr.Dataset:  # fmt: skip
    """Measure the exact probability of each byte of texts, and what a prompt cut there into tokens would give.

    A model of tokens gives the probability of a text as the sum over its cover encodings: sequences of tokens that some
    encoding begins with, that spell the text, and may go on beyond it in the last token.  The usual prompt holds one of
    them, and so predicts another next byte wherever a longer token was possible: tokenization bias.

    Parameters
    ----------
    models : Model or sequence of Model
        With their tokenizers, byte-level or SentencePiece.  Several may have different ones: what they predict is
        averaged byte by byte.
    texts : sequence of str
        What is read.
    after : sequence of str, optional
        What each text follows; it is read, and not counted.
    context : sequence of int, optional
        Tokens before each text in the place of BOS.  To fill in the middle, those of a prompt whose last part is the
        text before the gap: (suffix mark, suffix, prefix mark) in the order that the model was trained on.
    weights : sequence of float, optional
        Of the models in the average; by default equal.

    Returns
    -------
    xarray.Dataset
        On ``prompt`` and ``place``, with a dimension ``model`` for several models, whose last entry is their average:

        - ``log_prob``: log-probability of the byte given all before it, P(xc) / P(x); sums to that of the text (the
          space that a tokenizer writes before a text belongs to its first byte),
        - ``log_prob_naive``: that of the first byte of the next token after the tokens of the text so far; NaN inside a
          character, and at the beginning where the tokenizer writes a space before a text,
        - ``total_variation``: between the two distributions of the next byte (or end),
        - ``rejected``: share of P(x) on tokens after which no text is encoded so, which models give and tokenizers
          never do, and on ids without a token; ``total_variation`` is of the distributions without them,
        - ``n_covers``: cover encodings of the text so far.

        On ``prompt``: ``bits_per_byte``, ``bits_per_byte_tokens`` (of the one usual encoding), and ``bias`` by
        ``where``: the mean total variation between tokens of the usual encoding, and inside of them.  Attributes
        ``passes_per_byte`` and ``tokens_per_byte``: forward passes of one sequence, and tokens run in them, per byte
        read; ``cached``: whether what sequences share was run once.

    Raises
    ------
    ValueError
        For a text that its tokens do not spell, a model without BOS, a text longer than the context, or NaN.

    Notes
    -----
    After each byte only the encoding of the text so far is new: one forward pass.  Of the tokens after it, the rarest
    with 1e-6 of P(x) together are counted without looking whether they make an encoding.

    References
    ----------
    Phan et al. 2024, arXiv 2410.09303 (exact byte-level probabilities), 2406.16829 (tokenization bias).

    Examples
    --------
    >>> import tokinterp as ti
    >>> ds = ti.tokenizers.byte_probabilities(ti.load_model(), ["born in London"])
    >>> d = ds.isel(prompt=0, place=11)  # after "born in Lon"
    >>> float(d["log_prob"].round()), float(d["log_prob_naive"]) < -3
    (-0.0, True)
    """
    named, share = _named(models), _weighted(weights, len(_named(models)))
    if after is not None and len(after) != len(texts):
        refuse("after", len(after), f"there are {len(texts)} texts: give what each of them follows")
    readers = [Reader(m, c) for m, c in zip(named.values(), _contexts(context, len(named)), strict=True)]
    before = list(after) if after is not None else [""] * len(texts)
    own = [t.encode() for t in texts]
    for n, data in enumerate(own):
        if not data:
            refuse(f"texts[{n}]", texts[n], "there is no byte to predict: leave it out")
    wholes = [[r.spelled(start + text) for start, text in zip(before, texts, strict=True)] for r in readers]
    shape = (len(named) + (len(named) > 1), len(texts), max(map(len, own)))
    value = {n: np.full(shape, np.nan) for n in ("log_prob", "log_prob_naive", "total_variation", "rejected")}
    covers, usual = np.full(shape, -1), np.full(shape[:2], np.nan)
    inside = np.zeros(shape, dtype=bool)
    for i, start in enumerate(before):
        data = own[i]
        exact = np.zeros((len(named), len(data), END + 1))
        for m, reader in enumerate(readers):
            whole = wholes[m][i]
            skip = len(whole) - len(data)
            found: list[Next] = []
            try:
                for n, one in enumerate(reader.along(whole)):
                    found += [one.next()] if n >= skip else []
            except FloatingPointError as error:
                raise ValueError(f"model={list(named)[m]}: {error} after a beginning of texts[{i}]") from None
            for n, (one, byte) in enumerate(zip(found, data, strict=False)):
                exact[m, n] = _normal(one)
                naive = one.naive if n or start or not skip else np.full(END + 1, np.nan)  # no prompt ends there
                value["log_prob"][m, i, n] = found[n + 1].log_prob - (one.log_prob if n or start else 0.0)
                value["log_prob_naive"][m, i, n] = np.log(naive[byte]) if naive[byte] > 0 else np.nan
                value["total_variation"][m, i, n] = _variation(exact[m, n], naive)
                value["rejected"][m, i, n] = one.rejected
                covers[m, i, n] = one.n_covers
            usual[m, i] = found[-1].log_prob_tokens - (found[0].log_prob_tokens if start else 0.0)
            ids = reader.tokens.encode([whole])[0] or ()
            ends = np.cumsum([len(reader.tokens.pieces[t]) for t in ids]) - skip
            inside[m, i, : len(data)] = ~np.isin(np.arange(len(data)), ends if start else [0, *ends])
        if len(named) > 1:
            p = np.einsum("m,mnb->nb", share, exact)[np.arange(len(data)), list(data)]
            value["log_prob"][-1, i, : len(data)] = np.log(np.where(p > 0, p, np.nan))
    sizes = np.array([len(d) for d in own])
    ds = _labelled(value, covers, usual, inside, sizes, list(texts), named)
    return _stamped(ds, "byte_probabilities", named, readers, sum(sizes) + sum(len(b.encode()) for b in before),
                    {"after": after, "context": context, "weights": weights}, texts)  # fmt: skip


def _labelled(
    value: dict[str, np.ndarray], covers: np.ndarray, usual: np.ndarray, inside: np.ndarray, sizes: np.ndarray,
    texts: list[str], named: dict[str, Model],
) -> xr.Dataset:  # fmt: skip
    single, v = len(named) == 1, variable
    dims = ("prompt", "place") if single else ("model", "prompt", "place")
    bits = -np.nansum(value["log_prob"], -1) / np.log(2) / sizes
    bits[np.isnan(value["log_prob"]).sum(-1) > (value["log_prob"].shape[-1] - sizes)] = np.nan
    tv = value["total_variation"]
    bias = np.full((*tv.shape[:2], 2), np.nan)
    for k, at in enumerate((~inside, inside)):
        known = at & np.isfinite(tv)
        bias[..., k] = np.where(known.any(-1), np.where(known, tv, 0).sum(-1) / known.sum(-1).clip(1), np.nan)
    place = np.arange(sizes.max())
    character = np.full((len(texts), len(place)), "", dtype=object)
    for i, text in enumerate(texts):
        character[i, : sizes[i]] = [c for c in text for _ in c.encode()]

    def cut(x: np.ndarray) -> np.ndarray:
        return x[0] if single else x

    data = {
        "log_prob": v(dims, cut(value["log_prob"]), "log-probability of the byte given all before", "nat", PHAN,
                      beside=["log_prob_naive"], range=(None, 0)),
        "log_prob_naive": v(dims, cut(value["log_prob_naive"]), "log-probability of the byte after a prompt cut there",
                            "nat", range=(None, 0)),
        "total_variation": v(dims, cut(tv), "total variation between exact and naive next byte", "1", PHAN,
                             short="tokenization bias", range=(0, 1)),
        "rejected": v(dims, cut(value["rejected"]), "share of probability on what is no encoding", "1",
                      short="rejected mass", range=(0, 1)),
        "n_covers": v(dims, cut(covers), "encodings that cover the text so far, -1 beyond its end", "1", PHAN),
        "is_inside_token": v(dims, cut(inside), "whether the place is inside a token of the usual encoding", "1"),
        "bits_per_byte": v(dims[:-1], cut(bits), "bits per byte", "bit", PHAN, beside=["bits_per_byte_tokens"]),
        "bits_per_byte_tokens": v(dims[:-1], cut(-usual / np.log(2) / sizes), "bits per byte of the usual encoding",
                                  "bit"),
        "bias": v((*dims[:-1], "where"), cut(bias), "mean total variation between exact and naive next byte", "1", PHAN,
                  short="tokenization bias", range=(0, 1)),
        "n_bytes": v("prompt", sizes, "bytes of the text", "byte"),
    }  # fmt: skip
    coords = {
        "prompt": v("prompt", np.arange(len(texts)), "number of the text", "1"),
        "place": v("place", place, "bytes of the text before", "byte"),
        "where": v("where", np.array(["between tokens", "inside a token"]), "where in the usual encoding", "1"),
        "character": v(("prompt", "place"), character, "character of which the byte is a part", "1"),
    }
    if not single:
        coords["model"] = v("model", np.array([*named, MIX]), "model, and their average", "1")
    first = "total_variation, log_prob, bias, bits_per_byte, rejected"
    return xr.Dataset(data, coords, {"dimensions": "place, where", "first": first})


def _stamped(
    ds: xr.Dataset, name: str, named: dict[str, Model], readers: Sequence[Reader], n_bytes: int,
    settings: dict[str, Any], texts: Sequence[str], seed: int = 0,
) -> xr.Dataset:  # fmt: skip
    """Return a result with its provenance and what it cost."""
    infos = [current(m) for m in named.values()]
    told = joined([asdict(i) for i in infos])
    info = replace(infos[0], **{k: str(told[k]) for k in ("id", "revision", "weights", "tokenizer", "dtype", "device")},
                   facts=infos[0].facts if len(infos) == 1 else {i.id: i.facts for i in infos})  # fmt: skip
    ds = stamped(ds, name, info, digest(list(texts)), settings, seed)
    ds.attrs |= {
        "passes_per_byte": float(sum(r.after.rows for r in readers) / len(readers) / n_bytes),
        "tokens_per_byte": float(sum(r.after.tokens for r in readers) / len(readers) / n_bytes),
        "cached": int(all(r.after.cached for r in readers)),
    }
    check(ds)
    return ds


@checked(models=_MODELS, prompts=some_strings, context=several(count()), weights=several(number(0)))
@steady
def next_bytes(
    models: Model | Sequence[Model], prompts: Sequence[str], *, context: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
) -> xr.Dataset:  # fmt: skip
    """Measure the exact distribution of the byte after each prompt, and what the tokens of the prompt predict.

    Parameters
    ----------
    models, context, weights
        See `byte_probabilities`.
    prompts : sequence of str
        May end anywhere, inside a word as well.

    Returns
    -------
    xarray.Dataset
        On ``prompt`` and ``next`` (the 256 bytes, then the end of the text): ``prob``, which sums to 1 without what is
        rejected, and ``prob_naive``; with a dimension ``model`` for several models, the last entry their average.  On
        ``prompt``: ``total_variation``, ``rejected``, ``n_covers`` and ``log_prob`` of the whole prompt.

    Examples
    --------
    >>> import tokinterp as ti
    >>> ds = ti.tokenizers.next_bytes(ti.load_model(), ["He was born in Lon"])
    >>> ds["next_text"].values[ds["prob"].values[0].argmax()], round(float(ds["prob"].max()), 3)
    ('d', 0.975)
    >>> ds["next_text"].values[ds["prob_naive"].values[0].argmax()], int(ds["n_covers"][0])
    ('a', 17)
    """
    named, share = _named(models), _weighted(weights, len(_named(models)))
    readers = [Reader(m, c) for m, c in zip(named.values(), _contexts(context, len(named)), strict=True)]
    several_models = len(named) > 1
    prob, naive = (np.full((len(named) + several_models, len(prompts), END + 1), np.nan) for _ in range(2))
    rest = {n: np.full(prob.shape[:2], np.nan) for n in ("total_variation", "rejected", "log_prob", "n_covers")}
    for m, reader in enumerate(readers):
        try:
            ends = [c.next() for c in reader.after_all(prompts)]
        except FloatingPointError as error:
            raise ValueError(f"model={list(named)[m]}: {error}") from None
        for i, last in enumerate(ends):
            prob[m, i], naive[m, i] = _normal(last), last.naive
            rest["total_variation"][m, i] = _variation(prob[m, i], naive[m, i])
            for name in ("rejected", "log_prob", "n_covers"):
                rest[name][m, i] = getattr(last, name)
    if several_models:
        prob[-1], naive[-1] = np.einsum("m,mib->ib", share, prob[:-1]), np.einsum("m,mib->ib", share, naive[:-1])
    v, dims = variable, ("model", "prompt", "next") if several_models else ("prompt", "next")

    def cut(x: np.ndarray) -> np.ndarray:
        return x if several_models else x[0]

    shown = [bytes([b]).decode("ascii") if 32 <= b < 127 else f"\\x{b:02x}" for b in range(END)]
    ds = xr.Dataset(
        {
            "prob": v(dims, cut(prob), "probability of the next byte", "1", PHAN, range=(0, 1), beside=["prob_naive"]),
            "prob_naive": v(dims, cut(naive), "probability of the first byte of the next token", "1", range=(0, 1)),
            "total_variation": v(dims[:-1], cut(rest["total_variation"]), "total variation between the two", "1", PHAN,
                                 short="tokenization bias", range=(0, 1)),
            "rejected": v(dims[:-1], cut(rest["rejected"]), "share of probability on what is no encoding", "1",
                          range=(0, 1)),
            "log_prob": v(dims[:-1], cut(rest["log_prob"]), "log-probability of the prompt", "nat", PHAN),
            "n_covers": v(dims[:-1], cut(rest["n_covers"]), "encodings that cover the prompt", "1", PHAN),
        },
        {
            "prompt": v("prompt", np.arange(len(prompts)), "number of the prompt", "1"),
            "next": v("next", np.arange(END + 1), "next byte; 256 is the end of the text", "1"),
            "next_text": v("next", np.array([*shown, "end"]), "next byte as text", "1"),
        },
        {"dimensions": "next", "first": "prob, total_variation, rejected"},
    )  # fmt: skip
    if several_models:
        ds = ds.assign_coords(model=v("model", np.array([*named, MIX]), "model, and their average", "1"))
    n_bytes = sum(len(p.encode()) for p in prompts)
    return _stamped(ds, "next_bytes", named, readers, n_bytes, {"context": context, "weights": weights}, prompts)


@checked(models=_MODELS, prompts=some_strings, n_bytes=count(1), context=several(count()), weights=several(number(0)),
         temperature=number(0))  # fmt: skip
@steady
def sample_bytes(
    models: Model | Sequence[Model], prompts: Sequence[str], n_bytes: int = 32, *, temperature: float = 1.0,
    context: Sequence[int] | None = None, weights: Sequence[float] | None = None, seed: int = 0,
) -> xr.Dataset:  # fmt: skip
    r"""Draw what follows prompts byte by byte, so that a prompt may end inside a word.

    Parameters
    ----------
    models, context, weights
        See `byte_probabilities`; of several models the average is drawn from.
    prompts : sequence of str
        May end anywhere.
    n_bytes : int
        Most bytes drawn after each; fewer where the text ends.
    temperature : float
        Probabilities are raised to one over it; 0 takes the most probable byte.
    seed : int
        Of the draws.

    Returns
    -------
    xarray.Dataset
        On ``prompt``: ``text`` drawn (bytes that are no whole character as ``\xe2``), its ``log_prob`` under the
        distribution without what is rejected, ``n_bytes``, and whether the text ``ended``.

    Examples
    --------
    >>> import tokinterp as ti
    >>> ds = ti.tokenizers.sample_bytes(ti.load_model(), ["He was born in Lon"], 3, temperature=0)
    >>> ds["text"].values.tolist()
    ['don']
    """
    named, share = _named(models), _weighted(weights, len(_named(models)))
    readers = [Reader(m, c) for m, c in zip(named.values(), _contexts(context, len(named)), strict=True)]
    rng = np.random.default_rng(seed)
    try:
        covers = [r.after_all(prompts) for r in readers]
        drawn, log_prob = [bytearray() for _ in prompts], np.zeros(len(prompts))
        going, ended = list(range(len(prompts))), np.zeros(len(prompts), dtype=bool)
        for step in range(n_bytes):
            chosen: dict[int, int] = {}
            for i in going:
                p = np.asarray(share) @ np.stack([_normal(own[i].next()) for own in covers])
                if not np.isfinite(p).all():
                    raise ValueError(f"prompts[{i}]: no encoding covers what was drawn, {bytes(drawn[i])!r}")
                byte = int(p.argmax()) if temperature == 0 else int(rng.choice(END + 1, p=_tempered(p, temperature)))
                log_prob[i] += np.log(p[byte])
                if byte < END:
                    chosen[i] = byte
                    drawn[i].append(byte)
            ended[[i for i in going if i not in chosen]] = True
            going = list(chosen)
            if not going or step == n_bytes - 1:
                break
            for reader, own in zip(readers, covers, strict=True):
                reader.look([own[i] for i in going], [own[i].push(chosen[i]) for i in going])
    except FloatingPointError as error:
        raise ValueError(f"model={' and '.join(named)}: {error}") from None
    v, out = variable, [bytes(d).decode("utf-8", "backslashreplace").replace("\0", "\\x00") for d in drawn]
    ds = xr.Dataset(
        {
            "text": v("prompt", np.array(out), "text drawn", "1"),
            "log_prob": v("prompt", log_prob, "log-probability of the text drawn", "nat", PHAN),
            "n_bytes": v("prompt", np.array([len(d) for d in drawn]), "bytes drawn", "byte"),
            "ended": v("prompt", ended, "whether the text ended", "1"),
        },
        {"prompt": v("prompt", np.arange(len(prompts)), "number of the prompt", "1")},
    )
    n = sum(len(p.encode()) for p in prompts) + sum(map(len, drawn))
    settings = {"n_bytes": n_bytes, "temperature": temperature, "context": context, "weights": weights}
    return _stamped(ds, "sample_bytes", named, readers, max(n, 1), settings, prompts, seed)


def _tempered(p: np.ndarray, temperature: float) -> np.ndarray:
    q = np.exp(np.where(p > 0, np.log(np.where(p > 0, p, 1.0)) / temperature, -np.inf))
    return q / q.sum()
