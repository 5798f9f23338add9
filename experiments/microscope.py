"""What LLM-Microscope looks at: linearity, nonlinearity and context by kind of token, lenses, deletion of words.

Razzhigaev et al. 2025 (arXiv 2502.15007) and "Your Transformer is Secretly Linear" (arXiv 2405.12250). The corpus
recipe is that of the released notebook: 128 chunks of 512 characters drawn with ``random.seed(0)``, BOS on, all tokens
in one cloud; the authors cut enwik8 (``texts=enwik8.txt``), the preset paper has pile-10k, which every ``datasets``
can load.  ``chunks=0`` takes windows of ``n_tokens`` tokens instead.

===============================================================  =====================================================
published                                                        how
===============================================================  =====================================================
linearity of the blocks ("Procrustes similarity")                ``parts=linearity``: group linearity_all is as
                                                                 published; linearity is without BOS and massive rows;
                                                                 both raw, adjusted and held out
linearity without the residual stream; norm ratio                the same groups
anisotropy over depth                                            ``parts=linearity``: group spectrum, subset "all"
nonlinearity of tokens over layers (eq. 1, 2)                    ``parts=tokens``: by class of token
contextual memory, histograms by part of speech (section 3.2)    ``parts=memory``: trained decoder, by class of token;
                                                                 ``parts=tokens``: recall, a probe without training
correlation of nonlinearity and contextual memory (table 2)      ``parts=tokens,memory``
layer contribution, logit lens (sections 3.3, 3.4)               ``parts=lens``: raw (paper), normed, tuned
deletion of stop words, punctuation, articles (table 1)          ``parts=removal``: loss of what is left;
                                                                 ``mmlu=FOLDER``: accuracy, McNemar tests
===============================================================  =====================================================

Not published: shuffled text and the untrained network beside everything, random deletion at the same rate, intervals
over prompts, correlations at equal prefix length.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.results.documents import with_documents
from tokinterp.run.nulls import along_nulls, draw_null
from tokinterp.text.readers.files import read_texts
from tokinterp.text.removal import CONDITIONS

from .parts import microscope as found
from .runner.claims import Claim, Number, Results, curve, given, mean, plain
from .runner.preset import Preset, place

PARTS = ("linearity", "tokens", "memory", "lens", "removal")
CHARACTERS = 512


@dataclass
class Settings(Preset):
    """What is measured, how long is trained, and how many prompts the dear parts look at."""

    train: tuple[str, ...] = ()  # files for decoder and tuned lens; without any the last third of the texts
    parts: tuple[str, ...] = PARTS
    controls: tuple[str, ...] = ("shuffle:5", "untrained")  # what text is compared with, see `tokinterp.measure_nulls`
    chunks: int = 0  # so many chunks of 512 characters, as published; 0 for windows of n_tokens, drawn at random
    n_tokens: int = 512
    min_tokens: int | None = None  # of a window; four fifths of the most without one
    limit: int | None = 200  # windows
    steps: int = 2000  # of the context decoder
    rows: int = 64
    max_prefix: int = 32
    lr: float = 1e-4  # of the copy; small models need more
    lr_new: float = 1e-3
    lens_steps: int = 100
    lens_tokens: int = 2048
    lens_prompts: int | None = None
    removal_prompts: int | None = None
    conditions: tuple[str, ...] = CONDITIONS
    n_words: int = 256  # vocabulary of the recall probe
    mmlu: str | None = None  # folder or tar file of MMLU: accuracy after deletions
    mmlu_limit: int | None = None  # questions of each subject

    def train_texts(self) -> list[str]:
        """Return the texts that decoder and lens are trained on, none of which is measured."""
        if "train" not in self.found:
            if self.train:
                self.found["train"] = [t for f in self.train for t in read_texts(place(f))]
            else:
                texts = self.read()
                cut = max(1, len(texts) * 2 // 3)
                self.found |= {"texts": texts[:cut], "train": texts[cut:]}
        return self.found["train"]

    def questions(self) -> list[Any]:
        """Return the questions of MMLU."""
        items = [] if self.mmlu is None else ti.behaviour.read_mmlu(place(self.mmlu), limit=self.mmlu_limit)
        if items:
            self.found["questions"] = [repr(item) for item in items]
        return items


SMALL: dict[str, Any] = {"lens_steps": 60, "limit": 200, "n_tokens": 500}
STORIES = "$TOKINTERP_DATA/text/tinystories_1000.json"
PRESETS = {
    "tiny": Settings(
        controls=("untrained",), n_tokens=80, min_tokens=40, limit=8, steps=2, rows=8, max_prefix=4, lens_steps=1,
        lens_tokens=128, lens_prompts=2, removal_prompts=2, n_words=32, conditions=("stop words", "articles"),
    ),
    "bundled": Settings(
        n_tokens=500, limit=60, steps=300, max_prefix=8, lr=5e-4, lr_new=5e-3, lens_steps=30, lens_prompts=40,
        removal_prompts=40,
    ),
    "wikipedia": Settings(
        texts=("$TOKINTERP_DATA/text/wikipedia_test_500.csv.xz",), train=(
            "$TOKINTERP_DATA/text/wikipedia_train_1000.csv.xz",), steps=1500, max_prefix=8, lr=5e-4, lr_new=5e-3,
        lens_prompts=100, removal_prompts=60, mmlu="$TOKINTERP_DATA/tasks/mmlu.tar.xz", mmlu_limit=4, **SMALL,
    ),
    "stories": Settings(
        model="$TOKINTERP_DATA/models/stories260K", texts=(STORIES,), steps=6000,
        max_prefix=16, lr=1e-3, lr_new=1e-2, lens_prompts=100, removal_prompts=100,
        **SMALL,
    ),
    "paper": Settings(
        model="meta-llama/Meta-Llama-3-8B", texts=("NeelNanda/pile-10k",), split="train", chunks=128,
    ),
}  # fmt: skip


def run(p: Settings, kept: Path | None = None) -> dict[str, xr.Dataset]:
    """Return the parts with a dimension ``null`` ("none" is text).

    linearity, linearity_all, linearity_spread (of the text), spectrum, nonlinearity, recall, recall_layers,
    recall_correlation, memory, memory_raw, memory_length, memory_correlation, lens, removal, mmlu.

    Raises
    ------
    ValueError
        For an unknown part, or if no text is long enough.
    """
    if unknown := [name for name in p.parts if name not in PARTS]:
        raise ValueError(f"parts={list(p.parts)}: {unknown[0]!r} is none of {', '.join(PARTS)}")
    model = p.lm
    train_texts, texts = p.train_texts(), p.read()
    n_tokens = min(p.n_tokens, model.info.max_tokens)
    prompts = make_prompts(model, texts, p.chunks, n_tokens, p.min_tokens, p.limit, p.seed)
    train = make_prompts(model, train_texts, 0, n_tokens, 2, 4 * len(prompts), p.seed)
    labels, nodes = found.labels_of(prompts), {}
    for part in [*(name for name in PARTS if name in p.parts), *(["mmlu"] if p.mmlu else [])]:
        results: dict[str, dict[str, xr.Dataset]] = {}
        for null in ("none", *p.controls):
            if part == "mmlu" and null not in ("none", "untrained"):
                continue
            network, drawn = draw_null(model, prompts, null, p.seed)
            case = found.Case(network, drawn, null, labels, kept, p.progress)
            case.train = lambda null=null: draw_null(model, train, null, p.seed)[1]
            case.text = prompts
            for name, ds in getattr(found, part)(case, p).items():
                results.setdefault(name, {})[null] = with_documents(ds, prompts)
        nodes.update({name: along_nulls(sets) for name, sets in results.items()})
    return nodes


def make_prompts(
    model: ti.Model, texts: Sequence[str], chunks: int, n_tokens: int, min_tokens: int | None, limit: int | None,
    seed: int,
) -> ti.Prompts:  # fmt: skip
    """Return chunks of characters as published, or windows of tokens, drawn at random; with BOS.

    Examples
    --------
    >>> prompts = make_prompts(ti.load_model(), [t.text for t in ti.bundled_texts()], 4, 512, None, None, 0)
    >>> len(prompts), len(prompts.text(0))
    (4, 512)
    """
    if chunks:
        whole = "\n\n".join(texts)
        cut = [whole[i : i + CHARACTERS] for i in range(0, len(whole) - CHARACTERS + 1, CHARACTERS)]
        if not cut:
            raise ValueError(f"texts of {len(whole)} characters: a chunk has {CHARACTERS}")
        texts = random.Random(seed).sample(cut, min(chunks, len(cut)))
        return ti.Prompts.from_texts(texts, model, max_tokens=n_tokens, progress=False)
    least = n_tokens * 4 // 5 if min_tokens is None else min_tokens
    options: dict[str, Any] = {"max_tokens": n_tokens, "min_tokens": min(least, n_tokens), "on_long": "window"}
    prompts = ti.Prompts.from_texts(texts, model, **options, on_empty="drop", progress=False)
    order = np.random.default_rng(seed).permutation(len(prompts))[: limit or len(prompts)]
    return prompts[np.sort(order)]


# -- claims ---------------------------------------------------------------------------------------------------
AUTHORS, LINEAR = "Razzhigaev et al. 2025", "Razzhigaev et al. 2024"


def each(r: Results, name: str, number: Any) -> dict[str, Number]:
    """Return a number of every condition."""
    ds = r[name]
    return {"text" if n == "none" else n: number(ds.sel(null=n)) for n in map(str, ds["null"].values)}


def over_blocks(r: Results, variable: str) -> dict[str, Number]:
    """Return the mean of a variable over blocks under the controls, whose maps are fitted to all tokens at once."""
    why = "one fit to all tokens"
    return {n: x for n, x in each(r, "linearity_all", lambda ds: plain(ds[variable].mean("block"), why)).items()
            if n != "text"}  # fmt: skip


def at_middle(ds: xr.Dataset) -> xr.Dataset:
    """Return the layer half way through the network, named by its relative depth before anything is measured."""
    return ds.isel(layer=int(np.abs(ds["relative_depth"].values - 0.5).argmin()))


def class_effects(r: Results, name: str, subset: str) -> dict[str, Number]:
    """Return Cohen's d of a class of tokens against all others, of every condition."""
    return each(r, name, lambda ds: given(ds, "effect", subset=subset))


def beyond_random(ds: xr.Dataset, what: str) -> Number:
    """Return the rise of the loss by a deletion beyond that of random deletion, mean over prompts."""
    v = ds["difference"].sel(variant=what)
    return mean(v.sel(subset="condition") - v.sel(subset="random"))


def lens_loss(r: Results, variant: str) -> xr.DataArray:
    """Return the loss of a lens at mid-depth by condition and prompt."""
    v = r["lens"]["cross_entropy"].sel(variant=variant)
    return v.isel(layer=v.sizes["layer"] // 2)


CLASSES = ("article", "stop word", "punctuation")
CLAIMS = [
    Claim(
        "blocks are nearly linear maps", LINEAR, "linearity of all rows as published, mean over blocks",
        lambda r: {"text": given(r["linearity_spread"], "linearity", null="none"), **over_blocks(r, "linearity"),
                   "held out, no massive rows": plain(
                       r["linearity"]["linearity_held_out"].sel(null="none").mean(), "one fit to each half")},
        ("linearity_all", "linearity_spread"), above=0.99,
    ),
    Claim(
        "without the residual stream they are much less linear", LINEAR, "drop of linearity, mean over blocks",
        lambda r: {
            "text, with less without": given(r["linearity_spread"], "drop", null="none"),
            **{f"{n}, without": x for n, x in over_blocks(r, "linearity_without_residual").items()},
            "text, without, by block": curve(r["linearity_all"]["linearity_without_residual"], null="none"),
        }, ("linearity_all", "linearity_spread"), above=0,
    ),
    Claim(
        "one direction dominates at mid-depth", LINEAR,
        "share of variance of the largest direction (anisotropy) at the layer half way",
        lambda r: {
            "text": given(at_middle(r["linearity_spread"]), "anisotropy", null="none", subset="all"),
            "text, no special or massive rows": given(
                at_middle(r["linearity_spread"]), "anisotropy", null="none", subset="regular"
            ),
            **{f"{n} by layer": curve(r["spectrum"]["anisotropy"], null=n, subset="all")
               for n in map(str, r["spectrum"]["null"].values)},
        }, ("spectrum", "linearity_spread"), above=0.5,
    ),
    *[
        Claim(
            f"{subset}s are more linear than other tokens".replace("punctuations are", "punctuation is"), AUTHORS,
            "nonlinearity, Cohen's d against all other tokens",
            lambda r, subset=subset: class_effects(r, "nonlinearity", subset), ("nonlinearity",), below=0,
        ) for subset in CLASSES
    ],
    *[
        Claim(
            f"{subset}s hold more context than other tokens".replace("punctuations hold", "punctuation holds"), AUTHORS,
            "context loss beyond that of the mean state, Cohen's d",
            lambda r, subset=subset: class_effects(r, "memory", subset), ("memory",), below=0,
        ) for subset in CLASSES
    ],
    Claim(
        "linear tokens hold more context", AUTHORS, "correlation of nonlinearity and context loss over tokens",
        lambda r: {
            **each(r, "memory_correlation", lambda ds: given(ds, "pearson", variant="published")),
            **{f"{n}, equal position": x for n, x in each(
                r, "memory_correlation", lambda ds: given(ds, "pearson", variant="equal position")).items()},
        }, ("memory_correlation",), above=0,
    ),
    *[
        Claim(
            f"without its {what} a text loses more than without random words", AUTHORS,
            "rise of the loss beyond that of random deletion (nat)",
            lambda r, what=what: each(r, "removal", lambda ds: beyond_random(ds, what)),
            ("removal",), above=0,
        ) for what in ("stop words", "articles")
    ],
    Claim(
        "answers to questions get worse without stop words", AUTHORS, "accuracy without less with them",
        lambda r: each(r, "mmlu", lambda ds: mean(ds["correct"].sel(variant="stop words") - ds["correct_original"])),
        ("mmlu",), below=0,
    ),
    Claim(
        "a lens says more with a fitted reader", AUTHORS, "loss at mid-depth, normed less tuned (nat)",
        lambda r: {
            "text, normed less tuned": mean((lens_loss(r, "normed") - lens_loss(r, "tuned")).sel(null="none")),
            **{f"{v} at mid-depth": mean(lens_loss(r, v), null="none") for v in ("raw", "normed", "tuned")},
            "tuned by layer": curve(r["lens"]["cross_entropy"], null="none", variant="tuned"),
        }, ("lens",), above=0,
    ),
]  # fmt: skip
