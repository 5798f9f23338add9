"""Tokens that are still to come: how far ahead a linear probe reads them from the state of one token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ..files.paths import new_path
from ..models.embeddings import embeddings
from ..models.steady import steady
from ..results.dataset import bound_coord, layer_coords, variable
from ..results.documents import interval_name
from ..results.stamp import stamped
from ..run.measurement import choose_layers
from ..run.sites import resid
from ..run.stream import report_nonfinite, stream
from ..settings import checked, count, instance, level, one_of, several
from ..stats.resample import group_sums, ratio, ratio_interval
from ..text.shuffle import shuffle_blocks
from .probe_text import label_ids
from .probes import fit_probes

if TYPE_CHECKING:
    from ..models.base import Model
    from ..run.batch import Batch
    from ..text.prompts import Prompts
    from .token_probes import TokenProbes

CONDITIONS = ("text", "shuffled")
KEPT = ("store", "checkpoint_every", "memory")  # no number depends on them
RIDGE = 1e-2  # penalty of the map to embeddings, in units of the mean variance of the states
WHOLE_ORDER = 9  # 4**9 blocks of a shuffle: single tokens of any prompt
PAL = "Pal et al. 2023, Future Lens, arXiv 2311.04897"
FTP = "Walker 2024, Future token prediction, arXiv 2410.18160"


@checked(
    prompts=instance("Prompts"), test=instance("Prompts"), offsets=several(count(1), 1, ascending=True),
    method=one_of("lda", "softmax", "factored"), level=level,
)  # fmt: skip
@steady
def future_tokens(
    model: Model,
    prompts: Prompts,
    test: Prompts,
    *,
    layers: Sequence[int] | None = None,
    offsets: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8),
    method: str = "factored",
    embedding: bool = False,
    level: float = 0.95,
    seed: int = 0,
    batch_tokens: int | None = None,
    progress: bool = False,
    **fit: Any,
) -> xr.Dataset:
    """Read the next tokens off the state of a token with linear probes, beside what other text and no order give.

    Parameters
    ----------
    model : Model
        What is run.
    prompts, test : Prompts
        What probes are fitted to, and other text that they are scored on.
    layers : sequence of int, optional
        All by default; layer 0, the embedding, is always one: what it says is known from the token alone.
    offsets : sequence of int
        How far ahead, ascending.
    method : {"factored", "softmax", "lda"}
        See `fit_probes`: "factored" is for small corpora, "softmax" for large ones; "lda" is a quick look, whose
        probabilities are no better than the frequencies of few tokens.
    embedding : bool
        Whether to predict the embedding of the token at the first offset, too, by ridge regression.
    level : float
        Of the intervals, over documents.
    seed : int
        Of the shuffle and the fit.
    batch_tokens : int, optional
        Padded tokens in a batch.
    progress : bool
        Show bars.
    **fit
        Further arguments of `fit_probes`; ``validation`` is shuffled where the text is, and ``store`` becomes a folder
        with the probes of both.

    Returns
    -------
    xarray.Dataset
        By ``condition``: "text", and as a control "shuffled", fitted to and scored on the same prompts with their
        tokens in random order.  With ``layer`` and ``offset``: ``accuracy``; ``gain``, cross-entropy of the labels by
        their frequency less that of the probe (both over labels that the fitted text has); ``ngram_accuracy``, share of
        the places at which the tokens at all of ``offsets`` up to this one are right at once (those in between are not
        looked at: give 1, 2, 3 and so on for n-grams); each with an ``_interval``.  With ``offset``:
        ``unigram_accuracy``, of the most frequent label, ``bigram_accuracy``, of the label that most often stands so
        far behind this token in the fitted text; ``ngram_unigram``; ``n_positions``.

    Raises
    ------
    ValueError
        If no token of either text has a label so far ahead.

    Notes
    -----
    Two forward passes of each text, four with ``embedding``.  A probe that reads more than layer 0 and than bigrams
    reads what the model has put there; what remains in shuffled text is frequency.

    References
    ----------
    Pal et al. 2023, arXiv 2311.04897; Walker 2024, arXiv 2410.18160.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> texts = [t.text for t in ti.bundled_texts()]
    >>> make = lambda part: ti.Prompts.from_texts(part, model, max_tokens=48, progress=False)
    >>> ds = future_tokens(model, make(texts[:12]), make(texts[12:18]), layers=[4], offsets=[1, 2], method="lda")
    >>> ds["accuracy"].dims
    ('condition', 'layer', 'offset')
    """
    at = sorted({0, *choose_layers(layers, model.info)})
    for name, p in (("prompts", prompts), ("test", test)):
        if not (label_ids(p, max(offsets)) >= 0).any():
            raise ValueError(f"offsets={list(offsets)}: no token of {name} has a label {max(offsets)} places ahead "
                             f"(the longest has {max(p.lengths)} tokens): give longer ones")  # fmt: skip
    columns: dict[str, list[np.ndarray]] = {}
    for name in CONDITIONS:
        own, other = (_read(p, name, seed) for p in (prompts, test))
        more = dict(fit)
        if fit.get("validation"):
            more["validation"] = _read(fit["validation"], name, seed)
        if fit.get("store") is not None:
            more["store"] = new_path(fit["store"], "store") / name
        probes = fit_probes(model, own, layers=at, offsets=list(offsets), method=method, seed=seed, progress=progress,
                            batch_tokens=batch_tokens, **more)  # fmt: skip
        sums = _sums(probes, model, other, at, batch_tokens, progress)
        found = _shares(sums, test.documents, level, seed)
        if embedding:
            vectors = _embedding_sums(model, (own, other), at, offsets[0], batch_tokens, progress)
            error, total = (group_sums(vectors[k], test.documents) for k in ("error", "total"))
            found["embedding_explained"] = ratio((total - error).sum(0), total.sum(0))
            found["embedding_explained_interval"] = ratio_interval(total - error, total, level=level, seed=seed)
        for key, value in found.items():
            columns.setdefault(key, []).append(value)
    n_documents = len(np.unique(test.documents))
    ds = _labelled(columns, n_documents, level)
    coords = {
        "condition": variable("condition", np.array(CONDITIONS), "what is read", "1"),
        "offset": variable("offset", np.array(list(offsets)), "place decoded minus place probed", "token"),
        "bound": bound_coord(), **layer_coords(at, model.info),
    }  # fmt: skip
    settings = {"layers": at, "offsets": list(offsets), "method": method, "embedding": embedding, "level": level,
                "prompts": prompts.hash,
                "fit": {k: getattr(v, "hash", v) for k, v in fit.items() if k not in KEPT}}  # fmt: skip
    ds = ds.assign_coords(coords).assign_attrs(
        first="accuracy, gain, ngram_accuracy", dimensions="condition", n_groups=n_documents, groups="documents"
    )
    return stamped(ds, "future_tokens", model, test, settings, seed)


def _read(prompts: Prompts, condition: str, seed: int) -> Prompts:
    """Return prompts as they are, or with their tokens in random order."""
    return shuffle_blocks(prompts, WHOLE_ORDER, seed) if condition == "shuffled" else prompts


def _sums(
    probes: TokenProbes, model: Model, prompts: Prompts, layers: list[int], batch_tokens: int | None, progress: bool
) -> dict[str, np.ndarray]:
    """Return sums over the places of each prompt: (prompt, layer, offset) of the probes, (prompt, offset) without."""
    text = probes.text
    assert text is not None
    offsets, shape = probes.offsets, (len(prompts), len(layers), len(probes.offsets))
    out = {n: np.zeros(shape) for n in ("hits", "ngram", "loss")}
    out |= {n: np.zeros((shape[0], shape[2])) for n in (
        "n", "n_seen", "n_all", "unigram", "bigram", "unigram_loss", "ngram_unigram")}  # fmt: skip
    share = (text.counts.double() / text.counts.sum(1, keepdim=True)).log()

    def look(batch: Batch) -> dict[str, torch.Tensor]:
        row = torch.searchsorted(torch.sort(batch.prompt_numbers).values, batch.tokens.prompt)
        found: dict[str, list[torch.Tensor]] = {n: [] for n in out}
        labels = []
        for k, o in enumerate(offsets):
            label = _labels(batch, prompts, o)
            seen = probes.classes(label, o)
            there, known = label >= 0, seen >= 0
            every = there if not labels else labels[-1][1] & there
            uni = label == int(text.unigram[k])
            all_uni = uni & every if not labels else labels[-1][2] & uni
            labels.append((label, every, all_uni, known))
            prior = torch.where(known, -share[k].to(label.device)[seen.clamp(min=0)], 0.0)
            bigram = text.bigram[k].to(label.device)[batch.tokens.ids].long()
            values = {"n": there, "n_seen": known, "n_all": every, "unigram": uni & there,
                      "bigram": (label == bigram) & there, "unigram_loss": prior, "ngram_unigram": all_uni}  # fmt: skip
            for name, value in values.items():
                found[name].append(_per_prompt(row, value, len(batch)))
        for layer in layers:
            x, so_far = probes.standardise(batch.rows(layer), layer), None
            parts: dict[str, list[torch.Tensor]] = {n: [] for n in ("hits", "ngram", "loss")}
            for o, (label, every, _, known) in zip(offsets, labels, strict=True):
                read = probes.read(x, layer, o, label, standardised=True)
                hit = (read.rank == 0) & (label >= 0)
                so_far = hit & every if so_far is None else so_far & hit & every
                loss = torch.where(known, -read.log_prob.double(), 0.0)
                for name, value in (("hits", hit), ("ngram", so_far), ("loss", loss)):
                    parts[name].append(_per_prompt(row, value, len(batch)))
            for name, value in parts.items():
                found[name].append(torch.stack(value, 1))
        return {n: torch.stack(v, 1) for n, v in found.items()}

    source = stream(model, prompts, resid(layers), batch_tokens=batch_tokens, progress=progress)
    with torch.inference_mode():
        for numbers, found in source.each(lambda batch: (batch.prompt_numbers.sort().values.tolist(), look(batch))):
            for name, value in found.items():
                out[name][numbers] = value.cpu().numpy()
    report_nonfinite(source.left_out, len(prompts), model)
    return out


def _labels(batch: Batch, prompts: Prompts, offset: int) -> torch.Tensor:
    """Return (row,) the token so far ahead, -1 where there is none, and where either is special."""
    label = batch.flatten(batch.labels(offset))
    special = torch.from_numpy(prompts.vocabulary.special_ids.astype(np.int64)).to(label.device)
    return label.masked_fill(torch.isin(label, special) | batch.tokens.special, -1)


def _embedding_sums(
    model: Model, prompts: tuple[Prompts, Prompts], layers: list[int], offset: int, batch_tokens: int | None,
    progress: bool,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return (prompt, layer) squared errors of embeddings predicted in the second text, and distances to the mean."""
    table, (own, other) = embeddings(model, ["input"])["input"].to(model.device).double(), prompts
    sums: dict[str, torch.Tensor] = {}

    def rows(batch: Batch, given: Prompts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        label = _labels(batch, given, offset)
        at = (label >= 0).nonzero()[:, 0]
        return at, table[label[at]], torch.stack([batch.rows(n)[at].double() for n in layers])

    def moments(batch: Batch) -> dict[str, torch.Tensor]:
        at, y, x = rows(batch, own)
        n = torch.tensor(len(at), dtype=torch.float64, device=y.device)
        return {"xx": x.mT @ x, "xy": x.mT @ y, "x": x.sum(1), "y": y.sum(0), "n": n}

    source = stream(model, own, resid(layers), batch_tokens=batch_tokens, progress=progress)
    for found in source.each(moments):
        sums = {k: v + sums[k] if sums else v for k, v in found.items()}
    report_nonfinite(source.left_out, len(own), model)
    n = sums["n"]
    middle_x, middle_y = sums["x"] / n, sums["y"] / n
    xx = sums["xx"] / n - middle_x[:, :, None] * middle_x[:, None]
    xy = sums["xy"] / n - middle_x[:, :, None] * middle_y
    penalty = RIDGE * xx.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
    eye = torch.eye(xx.shape[1], dtype=torch.float64, device=xx.device)
    weight = torch.linalg.solve(xx + penalty[:, None, None] * eye, xy)
    out = {k: np.zeros((len(other), len(layers))) for k in ("error", "total")}

    def errors(batch: Batch) -> tuple[list[int], torch.Tensor, torch.Tensor]:
        at, y, x = rows(batch, other)
        numbers = batch.prompt_numbers.sort().values
        row = torch.searchsorted(numbers, batch.tokens.prompt[at])
        error = (y - middle_y - (x - middle_x[:, None]) @ weight).square().sum(2)
        total = (y - middle_y).square().sum(1).expand_as(error)
        found = [torch.stack([_per_prompt(row, v, len(batch)) for v in of], 1) for of in (error, total)]
        return numbers.tolist(), found[0], found[1]

    source = stream(model, other, resid(layers), batch_tokens=batch_tokens, progress=progress)
    for numbers, error, total in source.each(errors):
        out["error"][numbers], out["total"][numbers] = error.cpu().numpy(), total.cpu().numpy()
    return out


def _per_prompt(row: torch.Tensor, value: torch.Tensor, n: int) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.float64, device=row.device).index_add_(0, row, value.double())


def _shares(sums: Mapping[str, np.ndarray], documents: np.ndarray, level: float, seed: int) -> dict[str, np.ndarray]:
    """Return shares over all documents, with intervals that draw documents."""
    s = {n: group_sums(v, documents) for n, v in sums.items()}
    out: dict[str, np.ndarray] = {"n_positions": s["n"].sum(0).astype(np.int64)}
    for name, above, below in (
        ("accuracy", s["hits"], s["n"]), ("ngram_accuracy", s["ngram"], s["n_all"]),
        ("gain", s["unigram_loss"][:, None] - s["loss"], s["n_seen"]),
    ):  # fmt: skip
        under = np.broadcast_to(below[:, None], above.shape)
        out[name] = ratio(above.sum(0), under.sum(0))
        out[f"{name}_interval"] = ratio_interval(above, under, level=level, seed=seed)
    for name, above, below in (
        ("unigram_accuracy", "unigram", "n"), ("bigram_accuracy", "bigram", "n"),
        ("ngram_unigram", "ngram_unigram", "n_all"),
    ):  # fmt: skip
        out[name] = ratio(s[above].sum(0), s[below].sum(0))
    return out


def _labelled(columns: Mapping[str, list[np.ndarray]], n: int, level: float) -> xr.Dataset:
    full, flat = ("condition", "layer", "offset"), ("condition", "offset")
    said: dict[str, dict[str, Any]] = {
        "accuracy": {"long_name": "share of places whose token so far ahead is read", "references": FTP,
                     "short": "accuracy", "range": (0, 1), "chance": "bigram_accuracy"},
        "gain": {"long_name": "cross-entropy by frequency less that of the probe", "short": "nat above frequency",
                 "chance": 0},
        "ngram_accuracy": {"long_name": "share of places at which all offsets up to there are read", "references": PAL,
                           "short": "all up to there", "range": (0, 1), "chance": "ngram_unigram"},
    }  # fmt: skip
    data: dict[str, Any] = {}
    for name, about in said.items():
        words, units = about.pop("long_name"), "nat" if name == "gain" else "1"
        data[name] = variable(full, np.stack(columns[name]), words, units, **about)
        bounds = np.stack(columns[f"{name}_interval"], 1)
        words = interval_name(words, level, "documents", n)
        data[f"{name}_interval"] = variable(("bound", *full), bounds, words, units)
    if "embedding_explained" in columns:
        words = "share of the variance of the next embedding that a linear map explains"
        data["embedding_explained"] = variable(
            full[:2], np.stack(columns["embedding_explained"]), words, "1", range=(None, 1), chance=0
        )  # fmt: skip
        bounds = np.stack(columns["embedding_explained_interval"], 1)
        data["embedding_explained_interval"] = variable(
            ("bound", *full[:2]), bounds, interval_name(words, level, "documents", n), "1"
        )  # fmt: skip
    for name, words, units in (
        ("unigram_accuracy", "accuracy of the most frequent token", "1"),
        ("bigram_accuracy", "accuracy of the token most frequent so far behind this one", "1"),
        ("ngram_unigram", "share of places at which all are the most frequent token", "1"),
        ("n_positions", "places with a label", "token"),
    ):  # fmt: skip
        data[name] = variable(flat, np.stack(columns[name]), words, units)
    return xr.Dataset(data)
