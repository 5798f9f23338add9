"""The geometry of the tokens of a prompt over depth, beside shuffled text, random tokens and an untrained network.

Viswanathan et al. 2025 (arXiv 2501.10573): texts of pile-10k with at least 1,024 tokens under every tokenizer used, the
first 1,024 tokens, no BOS, one cloud per prompt and layer; 2,244 prompts for text, 50 of them for what is shuffled.

=============================================================  ======================================================
published                                                      how
=============================================================  ======================================================
intrinsic dimension over layers, text and S = 1..5             ``parts=dimension``; n2 = 2 (version 1), 4 (version 2)
the same over the scale (range scaling), n2 = 2..256           ``parts=dimension``, ``scales=2,4,8,16,32,64,128,256``
overlap of neighbours of consecutive layers, k = 1..30         ``parts=overlap``, with chance
mean cosine; histogram of angles at tokens                     ``parts=cosine`` (cosine_diagonal is the published one)
log dimension against loss over prompts, per layer             ``parts=dimension,lens``: correlation
dimension of the cloud of logits against softmax entropy       ``parts=logits,lens``: logit_correlation
dimension against lens entropy at the same layer               ``parts=dimension,lens``: entropy_correlation; with
                                                               ``tuned=FILE``: tuned_correlation
reciprocity and transitivity (a fork of the code)              ``parts=graph``
distinct random ids (rebuttal); 20 draws of S = 5 (version 2)  always there; ``seed=N`` gives another draw
last layer after the final norm (all of the above)             ``last_normed=true``
released means of GPT-2 and Pythia-160m                        presets gpt2, pythia; gpt2_two has two single prompts
=============================================================  ======================================================

Not published: the untrained network, partial correlations and intervals, chance levels, the random tokens and the
untrained network in every measurement.  The authors' last layer is after the final norm; by default ours is the stream.
Two of the tokenizers (Llama-3, Mistral) ask for a licence on the hub.  A correct run should lie within about 0.05 of
the released numbers, the authors' distances being in float32 without centring.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.results.dataset import variable
from tokinterp.results.documents import groups_of, with_documents
from tokinterp.run.nulls import along_nulls, draw_null

from .parts.last_normed import LastNormed
from .parts.long_texts import long_in_all, make_prompts
from .parts.loss_correlations import correlations, entropy_correlation
from .runner.claims import Claim, Number, Results, curve, drawn, given, mean, plain
from .runner.preset import Preset, place
from .runner.record import stage

PARTS = ("dimension", "overlap", "cosine", "lens", "logits", "graph")
CONTROLS = ("shuffle:1", "shuffle:2", "shuffle:3", "shuffle:4", "shuffle:5", "random_ids", "untrained")
AUTHORS = "Viswanathan et al. 2025"
PILE: dict[str, Any] = {"texts": ("NeelNanda/pile-10k",), "split": "train"}
TOKENIZERS = (
    "meta-llama/Meta-Llama-3-8B", "mistralai/Mistral-7B-v0.1", "EleutherAI/pythia-6.9b-deduped", "facebook/opt-6.7b",
)  # fmt: skip
COUNT = 2244
"""Texts of pile-10k that are long enough under all of them."""


@dataclass
class Settings(Preset):
    """What is measured of which texts."""

    parts: tuple[str, ...] = PARTS
    controls: tuple[str, ...] = CONTROLS  # what text is compared with, see `tokinterp.measure_nulls`
    scales: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    k: tuple[int, ...] = (1, 2, 10, 30)
    n_tokens: int = 1024  # of each prompt, at most the context of the model; no BOS
    limit: int | None = None  # prompts of text
    n_controls: int | None = 50  # prompts, the first ones, under every condition; none for all
    long_in: tuple[str, ...] = ()  # tokenizers under which each text has so many tokens
    numbers: tuple[int, ...] = ()  # only the texts of these numbers
    windows: bool = False  # short texts are joined until they are long enough, long ones cut into several prompts
    exclude: tuple[str, ...] = ("special",)  # tokens that are in no cloud of the dimension
    tuned: str | None = None  # file of a tuned lens whose entropy is compared too
    last_normed: bool = False  # the last layer is read after the final norm, and the lens is of the last layer only


REPRODUCED: dict[str, Any] = {
    **PILE, "dtype": "float32", "parts": ("dimension", "lens"), "controls": (), "scales": (2, 4, 8),
    "n_controls": None, "exclude": (), "last_normed": True,
}  # fmt: skip
WIKIPEDIA: dict[str, Any] = {"n_tokens": 500, "limit": 200, "n_controls": None, "windows": True}
PRESETS = {
    "tiny": Settings(
        model="bundled/narrow",
        controls=("shuffle:5", "untrained"), n_tokens=100, limit=9, scales=(2, 4, 8), k=(1, 10),
        n_controls=None,
    ),
    "bundled": Settings(n_tokens=500, limit=40, n_controls=None),
    "wikipedia": Settings(texts=("$TOKINTERP_DATA/text/wikipedia_train_1000.csv.xz",), **WIKIPEDIA),
    "stories": Settings(
        model="$TOKINTERP_DATA/models/stories260K", texts=("$TOKINTERP_DATA/text/tinystories_1000.json",), **WIKIPEDIA
    ),
    "paper": Settings(model="meta-llama/Meta-Llama-3-8B", long_in=TOKENIZERS, **PILE),
    "gpt2": Settings(model="openai-community/gpt2", long_in=TOKENIZERS, **REPRODUCED),
    "gpt2_two": Settings(model="openai-community/gpt2", numbers=(0, 3218), **REPRODUCED),
    "pythia": Settings(model="EleutherAI/pythia-160m-deduped", long_in=TOKENIZERS, **REPRODUCED),
}  # fmt: skip


def run(p: Settings, kept: Path | None = None) -> dict[str, xr.Dataset]:
    """Return each part with a dimension ``null`` ("none" is text), and what follows from several.

    ``correlation`` of log dimension with the loss, ``logit_correlation`` of the dimension of logits with entropy and
    loss, ``entropy_correlation`` with the entropy of the lens at the same layer, all per null over the common prompts;
    ``covariates``; and where text has more prompts than the controls, ``correlation_text`` over all of them.

    Raises
    ------
    ValueError
        For an unknown part or control, or if no text is long enough.
    """
    unknown = [name for name in p.parts if name not in PARTS]
    if unknown or not p.parts:
        raise ValueError(f"parts={list(p.parts)}: the parts are {', '.join(PARTS)}")
    numbers, texts = chosen_texts(p)
    prompts = make_prompts(p.lm, texts, p.n_tokens, p.limit, p.windows)
    common = prompts[: p.n_controls or len(prompts)]
    asked = measurements(p)
    passes: dict[str, xr.DataTree] = {}
    covariates: dict[str, xr.Dataset] = {}
    for null in ("none", *p.controls):
        passes[null], drawn = one_pass(p, common, null, asked, kept)
        covariates[null] = ti.geometry.prompt_covariates(drawn)
        covariates[null].attrs = {**passes[null].attrs, "measurement": "prompt_covariates"}
    nodes = side_by_side(passes)
    for name, found in correlations(passes, covariates).items():
        nodes[name] = along_nulls(found)
    nodes["covariates"] = along_nulls(covariates)
    if len(common) < len(prompts) and {"dimension", "lens"} <= {*p.parts}:
        whole, _ = one_pass(p, prompts, "none", asked, kept, label="text")
        every = {"none": ti.geometry.prompt_covariates(prompts)}
        every["none"].attrs = dict(whole.attrs)
        for name, found in correlations({"none": whole}, every).items():
            nodes[f"{name}_text"] = found["none"]
    if p.tuned is not None:
        tuned = ti.lens.TunedLens.load(place(p.tuned))
        both = {
            "dimension": ti.geometry.IntrinsicDimension(p.scales, tokens=0),
            "lens": ti.lens.LogitLens(top=0, tokens=0, variants=("normed", "tuned"), tuned=tuned),
        }
        store = stage(kept, "tuned.zarr")
        found = ti.measure(p.lm, common, both, store=store, progress=p.progress)
        nodes["tuned_correlation"] = entropy_correlation(found, "tuned")
    if not p.windows:
        number = variable("prompt", numbers[common.documents], "number of the text in the input data set", "1")
        nodes |= {n: nodes[n].assign_coords(number=number) for n in ("dimension", "lens") if n in nodes}
    return nodes


def chosen_texts(p: Settings) -> tuple[np.ndarray, list[str]]:
    """Return the texts that are long enough under every tokenizer asked for, and their numbers in the data set."""
    texts = [t.strip() for t in p.read()]
    kept = np.asarray(p.numbers) if p.numbers else np.arange(len(texts))
    if p.long_in:
        kept = long_in_all(texts, [*p.long_in, p.lm], p.n_tokens)
        if len(kept) != COUNT:
            print(f"note: {len(kept)} texts, where the authors have {COUNT}: means are not comparable", flush=True)
    return kept, [texts[int(i)] for i in kept]


def measurements(p: Settings) -> dict[str, ti.Measurement]:
    """Return the measurements of the parts."""
    layers = [p.lm.info.n_layers] if p.last_normed else None
    all_parts: dict[str, ti.Measurement] = {
        "dimension": ti.geometry.IntrinsicDimension(p.scales, tokens=0, small="nan", exclude=p.exclude),
        "overlap": ti.geometry.NeighbourOverlap(p.k, pairs=False, labels=(), small="nan"),
        "cosine": ti.geometry.CosineSimilarity(),
        "lens": ti.lens.LogitLens(layers, top=0, tokens=0),
        "logits": ti.geometry.LogitDimension(p.scales, small="nan"),
        "graph": ti.geometry.NeighbourGraph(p.k, small="nan"),
    }
    return {name: all_parts[name] for name in PARTS if name in p.parts}


def one_pass(
    p: Settings, prompts: ti.Prompts, null: str, asked: dict[str, ti.Measurement], kept: Path | None, label: str = ""
) -> tuple[xr.DataTree, ti.Prompts]:
    """Measure one condition, or read what was measured before, and return it with the prompts drawn.

    What is drawn of several windows of a text belongs to that text, in all conditions.
    """
    network, drawn = draw_null(p.lm, prompts, null, p.seed)
    if p.last_normed:
        network: Any = LastNormed(network)
    store = stage(kept, f"{label or null}.zarr")
    tree = ti.measure(network, drawn, copy.deepcopy(asked), store=store, progress=p.progress)
    nodes = {n: with_documents(tree.children[n].to_dataset(inherit=False), prompts) for n in asked}
    out = xr.DataTree.from_dict(nodes)
    out.attrs = dict(tree.attrs)
    return out, drawn


def side_by_side(passes: dict[str, xr.DataTree]) -> dict[str, xr.Dataset]:
    """Return each part with all conditions along ``null``."""
    names = next(iter(passes.values())).children
    return {
        n: along_nulls({null: p.children[n].to_dataset(inherit=False) for null, p in passes.items()}) for n in names
    }


# -- claims ---------------------------------------------------------------------------------------------------
def loss(r: Results) -> xr.DataArray:
    """Return the next-token loss by condition and prompt."""
    return r["lens"]["cross_entropy"].isel(layer=-1, variant=0)


def less(v: xr.DataArray, null: str = "shuffle:5", text: str = "none") -> xr.DataArray:
    """Return the difference of two conditions, prompt by prompt."""
    return v.sel(null=null) - v.sel(null=text)


def each(v: xr.DataArray) -> dict[str, Number]:
    """Return the mean of every condition."""
    return {"text" if n == "none" else n: mean(v, null=n) for n in map(str, v["null"].values)}


def dimension(r: Results, scale: int = 4) -> xr.DataArray:
    """Return the dimension behind the embedding, whose clouds have one point per kind of token."""
    return r["dimension"]["dimension"].sel(scale=scale, layer=slice(1, None))


def at_middle(v: xr.DataArray) -> xr.DataArray:
    """Return the values half way to the last layer."""
    return v.isel(layer=v.sizes["layer"] // 2 - 1)


CLAIMS = [
    Claim(
        "shuffling raises the loss", AUTHORS, "loss of S = 5 less that of text (nat)",
        lambda r: {"S = 5 less text": mean(less(loss(r))), **each(loss(r))}, ("lens",), above=0,
    ),
    Claim(
        "the dimension has a peak at mid-depth", AUTHORS, "dimension of text (n2 = 4), mid-depth less last",
        lambda r: {
            "middle less last layer": mean(less_last(dimension(r).sel(null="none"))),
            "text by layer": curve(dimension(r), null="none"),
            **{f"{n} by layer": curve(dimension(r), null=n) for n in known(r, "dimension", ENDS)},
        }, ("dimension",), above=0,
    ),
    *[
        Claim(
            f"shuffling raises the dimension at n2 = {scale}", AUTHORS,
            f"largest dimension of all layers (n2 = {scale}), S = 5 less text",
            partial(lambda r, scale: {
                "S = 5 less text": mean(less(dimension(r, scale).max("layer"))),
                **each(dimension(r, scale).max("layer")),
            }, scale=scale), ("dimension",), above=0,
        ) for scale in (2, 4, 8)
    ],
    Claim(
        "neighbours overlap more with depth", AUTHORS, "overlap (k = 1) of the last two layers less that of the first",
        lambda r: {
            "last less first": mean(overlap(r).sel(null="none").isel(block=-1) - overlap(r).sel(null="none")[:, 0]),
            "text by block": curve(overlap(r), null="none"),
            **{f"{n} by block": curve(overlap(r), null=n) for n in known(r, "overlap", ENDS)},
        }, ("overlap",), above=0,
    ),
    Claim(
        "shuffling lowers the overlap of nearest neighbours", AUTHORS, "overlap (k = 1) of the last two layers, S = 5 "
        "less text",
        lambda r: {"S = 5 less text": mean(less(overlap(r).isel(block=-1))), **each(overlap(r).isel(block=-1))},
        ("overlap",), below=0,
    ),
    Claim(
        "high overlap is no sign of learning", "control", "overlap (k = 1), mean over blocks, untrained less trained",
        lambda r: {"untrained less text": mean(less(overlap(r).mean("block"), "untrained"))}, ("overlap",), above=0,
    ),
    Claim(
        "mean cosine rises with shuffling at late layers", AUTHORS, "mean cosine at the last layer, S = 5 less text",
        lambda r: {"S = 5 less text": mean(less(cosine(r))), **each(cosine(r))}, ("cosine",), above=0,
    ),
    Claim(
        "log dimension goes with the loss over prompts", AUTHORS, "Pearson correlation at the last layer, n2 = 4",
        lambda r: {
            "text": last_correlation(r, "pearson"),
            "text, given length, types and unigrams": last_correlation(r, "partial"),
            **{n: last_correlation(r, "pearson", n) for n in known(r, "correlation", ENDS)},
            "text by layer": curve(r["correlation"]["pearson"], null="none", scale=4),
        }, ("correlation",), above=0,
    ),
    Claim(
        "it goes better at n2 = 4 than at n2 = 2", AUTHORS, "difference of the correlations at the last layer",
        lambda r: {
            "n2 = 4 less n2 = 2": correlation_difference(r, 4, 2),
            "n2 = 4": last_correlation(r, "pearson"), "n2 = 2": last_correlation(r, "pearson", scale=2),
        }, ("correlation",), above=0,
    ),
    Claim(
        "the dimension of the logits goes with their entropy", AUTHORS, "Pearson correlation of its logarithm, n2 = 4",
        lambda r: {
            "text": given(r["logit_correlation_entropy"], "pearson", null="none", scale=4),
            **{n: given(r["logit_correlation_entropy"], "pearson", null=n, scale=4)
               for n in known(r, "logit_correlation_entropy", ENDS)},
        }, ("logit_correlation_entropy",), above=0,
    ),
]  # fmt: skip
ENDS = ("shuffle:5", "random_ids", "untrained")


def known(r: Results, name: str, nulls: Sequence[str]) -> list[str]:
    """Return which conditions a result has."""
    return [n for n in nulls if n in r[name]["null"].values]


def less_last(v: xr.DataArray) -> xr.DataArray:
    """Return the value at mid-depth less that at the last layer."""
    return at_middle(v) - v.isel(layer=-1)


def overlap(r: Results) -> xr.DataArray:
    """Return the overlap of nearest neighbours by condition, prompt and block."""
    return r["overlap"]["overlap"].sel(k=1).transpose("null", "prompt", "block")


def cosine(r: Results) -> xr.DataArray:
    """Return the mean cosine at the last layer by condition and prompt."""
    return r["cosine"]["cosine_diagonal"].isel(layer=-1)


def last_correlation(r: Results, kind: str, null: str = "none", scale: int = 4) -> Number:
    """Return a correlation at the last layer with its interval."""
    return given(r["correlation"].isel(layer=-1), kind, null=null, scale=scale)


def correlation_difference(r: Results, scale: int, minus: int) -> Number:
    """Return the difference of the correlations at two scales at the last layer, over the same prompts.

    Whole documents are drawn where the prompts are windows of documents.
    """
    ds = r["dimension"].sel(null="none").isel(layer=-1)
    dims = ds["dimension"].sel(scale=[scale, minus]).transpose("scale", "prompt").values
    losses = loss(r).sel(null="none").values
    group, kind = groups_of(ds, "prompt")
    ok = np.isfinite(dims).all(0) & np.isfinite(losses)
    if ok.sum() < 8:
        return plain(np.nan)
    x, y, at = np.log(dims[:, ok]), losses[ok], np.unique(group[ok], return_inverse=True)[1]
    x, y = x - x.mean(1, keepdims=True), y - y.mean()
    n = int(at.max()) + 1
    one = np.ones_like(y)
    # moments (group, scale): how many, x, y, x x, y y, x y
    count, a, b, aa, bb, ab = (
        np.stack([np.bincount(at, column, n) for column in columns], 1)
        for columns in ((one, one), x, (y, y), x * x, (y * y, y * y), x * y)
    )

    def difference(w: np.ndarray) -> np.ndarray:
        total = w @ count
        mean_a, mean_b = w @ a / total, w @ b / total
        spread = (w @ aa / total - mean_a**2) * (w @ bb / total - mean_b**2)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = (w @ ab / total - mean_a * mean_b) / np.sqrt(spread)
        return found[:, 0] - found[:, 1]

    return drawn(difference, n, kind)


# -- released numbers -----------------------------------------------------------------------------------------
def largest_difference(
    r: Results, what: str, wanted: Sequence[float], scale: int = 2, text: int = -1
) -> dict[str, Any]:
    """Return the largest difference of all layers from released numbers, and our numbers by layer.

    Means are only compared where the prompts are as many as the authors'; NaN elsewhere.
    """
    n, ds = r["dimension"].sizes["prompt"], r["dimension"].sel(null="none")
    if what == "loss":
        ours = loss(r).sel(null="none")
    else:
        ours = ds["dimension"].sel(scale=scale, layer=slice(1, None)) if what == "dimension" else None
    if text >= 0:
        rows = np.flatnonzero(ds["number"].values == text)
        ours = ours.isel(prompt=int(rows[0])) if ours is not None and len(rows) else None
    elif n != COUNT:
        ours = None
    elif what == "pearson":
        ours = r["correlation"]["pearson"].sel(null="none", scale=scale)
    elif ours is not None:
        ours = ours.mean("prompt")
    if ours is None:
        return {"largest difference": plain(np.nan)}
    values = np.atleast_1d(ours.values)
    return {"largest difference": plain(np.abs(values - wanted).max()), "ours": values.tolist(), "released": [*wanted]}


def released() -> list[Claim]:
    """Return a claim for every released number or curve: ours is within the tolerance of it at every layer."""
    known: Mapping[str, Any] = json.loads(Path(__file__).with_name("parts").joinpath("targets.json").read_text())
    out = []
    for model, wanted in known["models"].items():
        groups = [(-1, "mean over prompts", wanted)]
        groups += [(int(k), f"text {k} of pile-10k", one) for k, one in wanted.get("documents", {}).items()]
        for text, said, numbers in groups:
            rows = [
                (what, int(n), row) for what in ("dimension", "pearson") for n, row in numbers.get(what, {}).items()
            ]
            if "loss" in numbers:
                rows.append(("loss", 0, [numbers["loss"] if text >= 0 else numbers["loss"]["mean"]]))
            out += [
                Claim(
                    f"{what}{f' at n2 = {scale}' if scale else ''} is as released, {said}", f"{AUTHORS}, data",
                    "largest difference over layers",
                    partial(largest_difference, what=what, wanted=row, scale=scale or 2, text=text),
                    ("dimension", "lens"), near=(0, known["tolerance"]), model=model,
                ) for what, scale, row in rows
            ]  # fmt: skip
    return out


CLAIMS += released()
