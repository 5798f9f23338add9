"""Tokens that the model cannot repeat: the last step of the search for under-trained tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
import xarray as xr

from ..models.steady import current, steady
from ..results.dataset import bound_coord, variable
from ..run.decoding import decode
from ..run.sites import resid
from ..run.walk import Walk, Walker, walked
from ..settings import checked, count, mapping, string
from ..stats.tests import wilson
from ..text.prompts import Prompts
from ..text.vocabulary import Vocabulary
from ..tokenizers.reachability import encode
from .indicators import embedding_indicators

if TYPE_CHECKING:
    from ..models.base import Model
    from ..run.batch import Batch

LAND = "Land and Bartolo 2024, Fishing for Magikarp, arXiv 2405.05417, section 2.2.3"
LOW = 0.01  # probability below which a token counts as not repeated
HALF = 12  # candidates on either side in the window of the display cut
PLACEHOLDERS = 200  # tokens that are tried


@checked(trials=count(), copies=count())
def repeat_templates(trials: int = 20, copies: int = 50) -> dict[str, str]:
    """Return the three texts that should make a model repeat ``{token}``, of the form of the published ones.

    Parameters
    ----------
    trials : int
        Solved trials of a device that repeats its input.
    copies : int
        Pairs of copies in a row, before the one to be continued.

    Examples
    --------
    >>> {name: text.count("{token}") for name, text in repeat_templates().items()}
    {'trials': 41, 'explanation': 1, 'copies': 101}
    """
    ask, answer = "\nInput: «{token}»\nOutput: «", "{token}»"
    return {
        "trials": f"A machine gives back what is put into it, as these trials show.{(ask + answer) * trials}{ask}",
        "explanation": (
            "An assistant says what words mean, and gives the same reply to the same question.\n"
            "User: What does 'qwzrtl' mean?\nAssistant: 'qwzrtl' is no word that I know.\n"
            "User: What does '{token}' mean?\nAssistant: '"
        ),
        "copies": "What follows is one phrase, written over and over again:\n" + "{token}" * (2 * copies + 1),
    }


@checked(templates=mapping(string, 1), n_tokens=count(1), n_controls=count())
@steady
def repeat_tokens(
    model: Model,
    found: xr.Dataset | None = None,
    *,
    indicator: str | None = None,
    templates: Mapping[str, str] | None = None,
    n_tokens: int = 3,
    n_controls: int | None = None,
    seed: int = 0,
    **walk: Unpack[Walk],
) -> xr.Dataset:
    """Ask a model to repeat the tokens that look untrained: what it never writes is an under-trained token.

    Parameters
    ----------
    model : Model
        From `load_model` or `wrap`, with its tokenizer.
    found : Dataset, optional
        What `embedding_indicators` said of this model; with its own defaults otherwise.
    indicator : str, optional
        Whose candidates are asked for; the default indicator of ``found``.
    templates : mapping of str to str, optional
        Texts by name in which ``{token}`` stands for the token, the last time before what should be its repetition;
        `repeat_templates` by default, which are of the published form, but not in its words.
    n_tokens : int
        Tokens decoded greedily; the token may come at each of them.
    n_controls : int, optional
        Other reachable tokens, drawn at random, which are asked for in the same way; as many as candidates by default.
    seed : int
        Of the draw.
    **walk
        ``batch_tokens``, ``store``, ``checkpoint_every``, ``progress``: see `tokinterp.run.walk.Walk`.

    Returns
    -------
    xarray.Dataset
        All of ``found``, and on ``vocab``: ``p_repeat`` (with ``template``; NaN where nothing was asked), the highest
        probability of the token at any step, ``p_max`` over templates; ``asked_as``, candidate or control;
        ``encodable``, whether some text with the token is encoded with it; ``verdict``; ``shown``, candidates below
        the display cut that are no single byte and not special; ``trained``, the mask for other statistics of the
        vocabulary: tokens that text can become, without candidates verified.  On ``kind`` (candidate, control):
        ``n_asked``, ``verified_share`` with its Wilson interval, ``median_p``.  On ``ranked`` (candidates that can be
        shown and have a probability, lowest indicator first): ``verified_near``, the share verified within 12 places.
        Scalars ``display_cut``, ``median_verified``, ``n_bytes_below``.

        Verdicts, by ``p_max``: ``strong_rejected`` above 0.9, ``weak_rejected`` above 0.1, ``encoding_failed`` if no
        text is encoded with the token, ``strong_verified`` below 0.001, else ``weak_verified``.  Where candidates are
        not repeated more rarely than controls, so that the model just cannot repeat, both of these are
        ``inconclusive``; ``not_finite`` without a probability.

    Raises
    ------
    ValueError
        For ``found`` of another model, a template without ``{token}`` or too long for the context, or a vocabulary
        without a token that stays itself in all templates.

    Notes
    -----
    The texts are built with a token that stays itself in them, whose id is then replaced: nothing is tokenised again.
    The padding token is not asked for, since no prompt may end with it.  A token counts as verified where ``p_max`` is
    below 0.01; how often that happens to tokens that do not look untrained, the controls say.  The display cut is the
    indicator of the candidate before the first window of 25 in which less than 2/3 are verified; with fewer candidates
    the window is all that fits (attribute ``cut_rule``: "narrow window"), and where no window is so low all are shown
    ("never below 2/3").

    References
    ----------
    Land and Bartolo 2024, arXiv 2405.05417, section 2.2.3; github.com/cohere-ai/magikarp.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> few = ti.embeddings.embedding_indicators(model, percentile=0.2)
    >>> asked = {"copies": ti.embeddings.repeat_templates(copies=5)["copies"]}
    >>> ds = ti.embeddings.repeat_tokens(model, few, templates=asked, n_tokens=1)
    >>> dict(zip(ds["token"].values, ds["verdict"].values))[" proble"]
    'weak_verified'
    """
    if found is None:
        found = embedding_indicators(model)
    _check_found(found, model)
    indicator = str(found.attrs["default_indicator"]) if indicator is None else indicator
    known = found["indicator"].values.tolist()
    if indicator not in known:
        raise ValueError(f"indicator={indicator!r}: there are {', '.join(known)}")
    value = found["indicator_value"].sel(indicator=indicator).values
    reach = found["reachability"].values.astype(str)
    may = found["is_candidate"].sel(indicator=indicator).values & (np.arange(len(value)) != _padding(model))
    candidates = np.flatnonzero(may)
    candidates = candidates[np.argsort(value[candidates], kind="stable")]
    if not len(candidates):
        raise ValueError(f"indicator={indicator!r} has no candidates: give found with a higher percentile")
    others = np.setdiff1d(np.flatnonzero(reach == "ok"), candidates)
    n_others = min(len(others), len(candidates) if n_controls is None else n_controls)
    controls = np.sort(np.random.default_rng(seed).choice(others, n_others, replace=False))
    asked = np.concatenate([candidates, controls])
    texts = repeat_templates() if templates is None else dict(templates)
    prompts, encodable = _prompts(model, texts, asked, reach, n_tokens)
    wanted = torch.from_numpy(np.tile(asked, len(texts)))

    def of_batch(batch: Batch) -> dict[str, torch.Tensor]:
        token = wanted[batch.numbers].to(batch.device)
        return {"p": decode(model, batch.ids, batch.mask, n_tokens, watch=token).watched.amax(1).double().exp()}

    def make(walker: Walker) -> xr.Dataset:
        p = walker.rows(prompts, resid([0]), of_batch)["p"].reshape(len(texts), len(asked)).T
        return _labelled(found, indicator, candidates, controls, list(texts), p, encodable)

    settings = {
        "found": found.attrs["fingerprint"], "indicator": indicator, "templates": texts, "n_tokens": n_tokens,
        "asked": asked.tolist(), "n_candidates": len(candidates),
    }  # fmt: skip
    return walked("repeat_tokens", model, prompts, settings, make, seed, **walk)


def _check_found(found: xr.Dataset, model: Model) -> None:
    if found.attrs.get("measurement") != "embedding_indicators":
        said = found.attrs.get("measurement", "no measurement")
        raise ValueError(f"found is a result of {said}: give what embedding_indicators returned")
    info = current(model)
    if found.attrs["weights"] != info.weights:
        raise ValueError(f"found is of {found.attrs['model']} with other weights than {info.id}: measure it again")


def _padding(model: Model) -> int:
    """Return the id of the padding token, with which no prompt may end; -1 without one."""
    padding = getattr(model.tokenizer, "pad_token_id", None)
    return -1 if padding is None else int(padding)


# -- texts --------------------------------------------------------------------------------------------------------
def _prompts(
    model: Model, texts: Mapping[str, str], asked: np.ndarray, reach: np.ndarray, n_tokens: int
) -> tuple[Prompts, np.ndarray]:
    """Return every text with every token, text by text, and (token,) whether one of them is encoded with the token."""
    for name, text in texts.items():
        if "{token}" not in text:
            raise ValueError(f"templates: {name!r} has no {{token}}: write it where the token belongs")
    vocabulary = Vocabulary(model.tokenizer, len(reach))
    stands = placeholder(vocabulary, list(texts.values()), reach)
    shown = vocabulary.strings([stands])[0]
    built = [t.replace("{token}", shown) for t in texts.values()]
    lengths = [vocabulary.adds_bos + len(row) for row in encode(model.tokenizer, built)]
    if max(lengths) + n_tokens - 1 > (most := model.info.max_tokens):
        raise ValueError(
            f"templates: {list(texts)[int(np.argmax(lengths))]!r} has {max(lengths)} tokens, and {model.info.id} a "
            f"context of {most}: give shorter ones, such as repeat_templates(trials=5, copies=20)"
        )
    made = Prompts.from_texts(built, model, progress=False)
    ids = [np.where(row == stands, token, row) for row in map(made.ids, range(len(texts))) for token in asked]
    written = encode(model.tokenizer, [model.tokenizer.decode(row) for row in ids])
    there = np.array(
        [token in again for token, again in zip(np.tile(asked, len(texts)).tolist(), written, strict=True)]
    )
    return Prompts.from_ids(ids, model), np.asarray(there.reshape(len(texts), len(asked)).any(0))


def placeholder(vocabulary: Vocabulary, texts: list[str], reach: np.ndarray) -> int:
    """Return a token that stands in all texts as often as ``{token}`` does: of letters, and of many kinds.

    Raises
    ------
    ValueError
        If there is none among the first 200.
    """
    shown = vocabulary.strings(np.arange(len(reach)))
    letters = [i for i in np.flatnonzero(reach == "ok").tolist() if shown[i].isalpha()]
    letters.sort(key=lambda i: (-len(set(shown[i])), -len(shown[i])))
    for i in letters[:PLACEHOLDERS]:
        found = encode(vocabulary.tokenizer, [t.replace("{token}", shown[i]) for t in texts])
        if all(ids.count(i) == t.count("{token}") for ids, t in zip(found, texts, strict=True)):
            return i
    raise ValueError(
        "templates: no token of letters stays itself in all of them, whatever stands beside it: give others, for "
        "example with spaces or line breaks around {token}"
    )


# -- numbers ------------------------------------------------------------------------------------------------------
def verdicts(p: np.ndarray, encodable: np.ndarray, conclusive: bool) -> np.ndarray:
    """Return (token,) the verdict on each by its highest probability.

    Examples
    --------
    >>> verdicts(np.array([0.95, 0.2, 0.05, 1e-4]), np.array([True, True, True, False]), True).tolist()
    ['strong_rejected', 'weak_rejected', 'weak_verified', 'encoding_failed']
    """
    verified = np.where(p < 0.001, "strong_verified", "weak_verified") if conclusive else "inconclusive"
    cases = [np.isnan(p), p > 0.9, p > 0.1, ~encodable]
    return np.select(cases, ["not_finite", "strong_rejected", "weak_rejected", "encoding_failed"], verified)


def display_cut(value: np.ndarray, low: np.ndarray) -> tuple[float, str]:
    """Return the indicator below which candidates are shown, and by which rule it was found.

    Parameters
    ----------
    value, low : numpy.ndarray
        (candidate,) indicator, ascending, and whether the token was not repeated.

    Examples
    --------
    >>> display_cut(np.arange(100.0), np.arange(100) < 30)
    (25.0, 'published')
    >>> display_cut(np.arange(7.0), np.arange(7) < 4)
    (2.0, 'narrow window')
    >>> display_cut(np.arange(40.0), np.ones(40, bool))
    (nan, 'never below 2/3')
    """
    half = min(HALF, max(len(value) - 1, 0) // 2)
    rule = "published" if half == HALF else "narrow window"
    for i in range(half, len(value) - half):
        if low[i - half : i + half + 1].mean() < 2 / 3:
            return float(value[max(i - 1, 0)]), rule
    return np.nan, "never below 2/3"


def verified_near(low: np.ndarray) -> np.ndarray:
    """Return (candidate,) the share that is not repeated within 12 places, fewer at the ends."""
    return np.array([low[max(i - HALF, 0) : i + HALF + 1].mean() for i in range(len(low))])


def _labelled(
    found: xr.Dataset, indicator: str, candidates: np.ndarray, controls: np.ndarray, names: list[str], p: np.ndarray,
    encodable: np.ndarray,
) -> xr.Dataset:  # fmt: skip
    """Return the whole table, from (token, template) probabilities of candidates and, behind them, controls."""
    size, asked, n = found.sizes["vocab"], np.concatenate([candidates, controls]), len(candidates)
    best = np.where(np.isnan(p), -1.0, p).max(1)
    best[np.isnan(p).any(1) & (best <= 0.1)] = np.nan  # what a missing text would have said, nobody knows
    groups = [best[:n][~np.isnan(best[:n])], best[n:][~np.isnan(best[n:])]]
    hits, sizes = np.array([(g < LOW).sum() for g in groups]), np.array([len(g) for g in groups])
    share, ends = np.full(2, np.nan), np.full((2, 2), np.nan)
    there = sizes > 0
    share[there] = hits[there] / sizes[there]
    if there.any():
        ends[:, there] = wilson(hits[there], sizes[there])
    conclusive = bool(there[0] and (not len(controls) or (there[1] and ends[0, 0] > ends[1, 1])))

    def whole(values: np.ndarray, missing: Any) -> np.ndarray:
        out = np.full((size, *values.shape[1:]), missing, dtype=values.dtype)
        out[asked] = values
        return out

    verdict = whole(verdicts(best, encodable, conclusive).astype(object), "")
    value, reach = found["indicator_value"].sel(indicator=indicator).values, found["reachability"].values.astype(str)
    n_bytes = found["n_bytes"].values
    shows = (n_bytes[candidates] > 1) & (reach[candidates] == "ok") & ~np.isnan(best[:n])
    ranked, low = candidates[shows], best[:n][shows] < LOW
    cut, rule = display_cut(value[ranked], low)
    shown = np.zeros(size, dtype=bool)
    shown[ranked[~(value[ranked] >= cut)]] = True  # all of them without a cut
    verified = value[candidates[best[:n] < LOW]]
    median = float(np.median(verified)) if len(verified) else np.nan
    role = whole(np.repeat(np.array(["candidate", "control"], object), [n, len(controls)]), "")
    bad = (whole(best, np.nan) < LOW) & whole(encodable, False) & (role == "candidate") & conclusive
    v, kinds = variable, ["candidate", "control"]
    median_p = [np.median(g) if len(g) else np.nan for g in groups]
    data = {
        "p_repeat": v(("vocab", "template"), whole(p, np.nan), "highest probability of a token, NaN if not asked", "1",
                      LAND, log=True),
        "p_max": v("vocab", whole(best, np.nan), "highest probability in any text, NaN if not asked", "1", LAND),
        "encodable": v("vocab", whole(encodable, False), "whether some text with the token is encoded with it", "1"),
        "asked_as": v("vocab", role, "candidate or control, empty if not asked", "1"),
        "verdict": v("vocab", verdict, "whether the model knows the token", "1", LAND),
        "shown": v("vocab", shown, "whether a candidate lies below the display cut", "1", LAND),
        "trained": v("vocab", (reach == "ok") & ~bad, "whether statistics of the vocabulary may use it", "1"),
        "n_asked": v("kind", [n, len(controls)], "tokens asked for", "token"),
        "verified_share": v("kind", share, f"share of tokens with a probability below {LOW:g}", "1", LAND,
                            short="share not repeated", range=(0, 1)),
        "verified_share_interval": v(("bound", "kind"), ends, "95 % Wilson interval of the share", "1"),
        "median_p": v("kind", median_p, "median of the highest probability", "1", LAND, log=True),
        "verified_near": v("ranked", verified_near(low), "share not repeated within 12 places", "1", LAND,
                           short="share not repeated", range=(0, 1), along=("ranked",)),
        "display_cut": v((), cut, "indicator below which candidates are shown, NaN for all", "1", LAND),
        "median_verified": v((), median, "median indicator of tokens that are not repeated", "1", LAND),
        "n_bytes_below": v((), ((n_bytes == 1) & (value < median)).sum(), "single bytes below that median", "token",
                           LAND),
    }  # fmt: skip
    coords = {
        "template": v("template", np.array(names), "text that asks for the token", "1"),
        "kind": v("kind", np.array(kinds), "candidates, or other tokens drawn at random", "1"),
        "ranked": v("ranked", np.arange(len(ranked)), "candidate, lowest indicator first", "1"),
        "ranked_id": v("ranked", ranked, "token id", "1"),
        "ranked_token": v("ranked", found["token"].values[ranked], "token", "1"),
        "bound": bound_coord(),
    }
    out = found.assign(data).assign_coords(coords)
    out.attrs = {
        **{k: found.attrs[k] for k in ("default_indicator", "unused_ids", "tied")}, "asked_indicator": indicator,
        "dimensions": "indicator, template, kind, ranked", "cut_rule": rule, "conclusive": int(conclusive),
        "first": "verified_share, verified_near, median_p",
    }  # fmt: skip
    return out
