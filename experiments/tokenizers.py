"""Tokenizers: what languages cost, how vocabularies are used, what prompts that end inside a token do, why tokens help.

====================================  =================================================================================
published                             here
====================================  =================================================================================
tokens of many languages              ``metrics``: parallel sentences of four languages (our own), or FLORES-200
what vocabularies are made of         ``overview``, ``reachability``, ``categories``: no text is needed but for ranks
tokenization bias                     ``bytes``: exact and naive next byte along texts, at every byte
why tokens help                       ``switching``, ``skewed``: Markov sources, three kinds of dictionaries
what a tokenizer was trained on       ``mixture``: own tokenizers of known mixtures; ``sources/NAME``: of given sources
====================================  =================================================================================

Three tokenizers come with it: that of the bundled model, one trained on every second sentence of all four languages
(the others are measured), and single bytes.  ``targets`` holds published values with what was found, for the tokenizers
of the run that have any.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.results.dataset import variable
from tokinterp.results.stamp import derived

from . import real_tokenizers
from .runner.claims import Claim, Number, Results, drawn, given, plain
from .runner.preset import Preset, place

PARTS = Path(__file__).with_name("parts")
BASE = "bundled"


@dataclass
class Settings(Preset):
    """Tokenizers, their texts, and sizes."""

    tokenizers: tuple[str, ...] = (BASE, "four languages", "bytes")  # these, or NAME=folder, file or name on the hub
    flores: str = ""  # FLORES-200 in the place of our sentences
    langs: tuple[str, ...] = ("en", "de", "es", "ru")  # the first is what premiums are of
    own_size: int = 800  # tokens of the tokenizer that is trained on our sentences
    bias_texts: int = 24  # texts read byte by byte; 0 for none
    bias_chars: int = 100  # of each of them
    sizes: tuple[int, ...] = (2, 4, 8, 16, 64, 256)  # tokens of the dictionaries
    n_train: tuple[int, ...] = (25, 100, 600)  # training strings
    n_test: int = 300
    mixtures: tuple[int, ...] = (2, 5)  # numbers of sources of the own tokenizers
    n_merges: int = 300
    sources: tuple[str, ...] = ()  # NAME=file: of what tokenizers with merges are said to be made


DATA = "$TOKINTERP_DATA/tokenizers"
FLORES = "$TOKINTERP_DATA/flores200_dataset"
PRESETS = {
    "tiny": Settings(
        own_size=320, bias_texts=3, bias_chars=16, sizes=(2, 16), n_train=(4, 20), n_test=20, mixtures=(2,), n_merges=60
    ),
    "bundled": Settings(),
    "data": Settings(
        tokenizers=(f"gpt2={DATA}/gpt2", f"pythia={DATA}/pythia/20B_tokenizer.json", f"llama={DATA}/llama2", BASE),
        flores=FLORES, langs=("eng_Latn", "por_Latn", "shn_Mymr", "sat_Olck"), bias_texts=0, mixtures=(),
    ),
    "paper": Settings(
        tokenizers=(
            "gpt2=openai-community/gpt2", "pythia=EleutherAI/pythia-160m", "cl100k=Xenova/gpt-4",
            "llama=huggyllama/llama-7b", "xlm-r=FacebookAI/xlm-roberta-base", "bloom=bigscience/bloom",
            "nllb=facebook/nllb-200-distilled-600M",
        ),
        flores=FLORES, langs=("eng_Latn", "por_Latn", "shn_Mymr", "sat_Olck"), mixtures=(2, 5), n_merges=1000,
        model="meta-llama/Llama-2-7b-hf", texts=("NeelNanda/pile-10k",), split="train", read_limit=50,
    ),
}  # fmt: skip


def sentences() -> dict[str, list[str]]:
    """Return the same twenty sentences in four languages."""
    return json.loads((PARTS / "four_languages.json").read_text(encoding="utf-8"))


def made(p: Settings) -> dict[str, Any]:
    """Return the tokenizers by name."""
    out: dict[str, Any] = {}
    for asked in p.tokenizers:
        name, is_place, where = asked.partition("=")
        if is_place:
            found = Path(where := place(where))
            original = (found / "encoder.json").is_file()  # as GPT-2's was published
            out[name] = real_tokenizers.tokenizer(found.parents[1], "gpt2") if original else ti.load_tokenizer(where)
        elif name == "four languages":
            texts = [t for one in sentences().values() for t in one[::2]]
            out[name] = trained(texts, p.own_size)
        elif name == "bytes":
            from transformers import ByT5Tokenizer

            out[name] = ByT5Tokenizer(extra_ids=0)
        else:
            out[name] = ti.load_tokenizer(name)
    return out


def trained(texts: list[str], size: int) -> Any:
    """Return a byte-level BPE trained on texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def run(p: Settings, kept: Path | None = None) -> dict[str, xr.Dataset]:
    """Return the results named above."""
    every = made(p)
    corpora: Any = {lang: t[1::2] for lang, t in sentences().items() if lang in p.langs}
    if p.flores:
        corpora = ti.tokenizers.flores(place(p.flores), p.langs, joined=True)
    base = BASE if BASE in every else next(iter(every))
    asked: dict[str, Any] = {"base": base, "base_lang": p.langs[0], "words": "space" if p.flores else "whitespace"}
    found: dict[str, xr.Dataset] = {
        "metrics": ti.tokenizers.tokenizer_metrics(every, corpora, **asked, seed=p.seed).isel(corpus=0),
        "overview": ti.tokenizers.tokenizer_overview(every, corpora),
    }
    for name, one in every.items():
        if name != "bytes":  # no fast tokenizer: 256 ids that are plain to see
            found[f"reachability/{name}"] = ti.tokenizers.token_reachability(one)
            found[f"categories/{name}"] = ti.tokenizers.token_categories(one)
    if p.bias_texts:
        texts = [t[: p.bias_chars].rstrip() for t in p.read()[: p.bias_texts]]
        found["bytes"] = ti.tokenizers.byte_probabilities(p.lm, texts)
    for name, rows in (("switching", [[0.9, 0.1], [0.1, 0.9]]), ("skewed", [[0.8, 0.2], [0.4, 0.6]])):
        source = ti.tokenizers.MarkovSource(rows)
        for kind in ("bpe", "lzw", "blocks"):
            found[f"{name}/{kind}"] = ti.tokenizers.token_unigram_loss(
                source, p.sizes, dictionary=kind, n_train=p.n_train, n_test=p.n_test, seed=p.seed
            )
    for n in p.mixtures:
        found[f"mixture/{n}"] = mixture(n, p.n_merges)
    if p.sources:
        files = {name: place(file) for name, _, file in (s.partition("=") for s in p.sources)}
        for name, one in every.items():
            if getattr(one, "is_fast", False) and "merges" in json.loads(one.backend_tokenizer.to_str())["model"]:
                found[f"sources/{name}"] = ti.tokenizers.infer_mixture(one, files, n_merges=p.n_merges)
    return {**found, **targets(found, p)}


def shares(n: int) -> np.ndarray:
    """Return the shares of n sources that an own tokenizer is trained on, each smaller than the one before."""
    weight = 1 / np.arange(1, n + 1)
    return weight / weight.sum()


def mixture(n: int, n_merges: int, size: int = 60_000) -> xr.Dataset:
    """Return what is inferred of a tokenizer trained on n sources of known shares.

    The sources are the bundled texts in n alphabets: in each, other letters stand for the letters.
    """
    letters, every = string.ascii_lowercase, [t.text.lower() for t in ti.bundled_texts()]
    tables = [str.maketrans(letters, letters[5 * k :] + letters[: 5 * k]) for k in range(n)]
    sources = {f"alphabet {k}": [t.translate(table) for t in every[k::n]] for k, table in enumerate(tables)}
    parts = ["".join(t)[: int(size * s)] for t, s in zip(sources.values(), shares(n), strict=True)]
    ds = ti.tokenizers.infer_mixture(trained(parts, 256 + n_merges), sources)
    true = np.array([len(t.encode()) for t in parts], dtype=np.float64)
    return ds.assign(true_share=variable("source", true / true.sum(), "share of the bytes it was trained on", "1"))


# -- published values -----------------------------------------------------------------------------------------
def targets(found: Mapping[str, xr.Dataset], p: Settings) -> dict[str, xr.Dataset]:
    """Return the published values of the tokenizers and languages of this run beside what was found."""
    known = json.loads((PARTS / "tokenizer_targets.json").read_text(encoding="utf-8"))
    rows = []
    for name, quantity, lang, target in known["rows"]:
        value = value_of(found, name, quantity, lang)
        if value is not None:
            digits = len(str(target).partition(".")[2])
            rows.append((f"{name}, {quantity}{f', {lang}' if lang else ''}", target, round(value, digits)))
    if not rows:
        return {}
    labels, target, value = zip(*rows, strict=True)
    a, b = np.array(target, dtype=np.float64), np.array(value, dtype=np.float64)
    ds = xr.Dataset(
        {
            "target": variable("row", a, "published value", "1"),
            "value": variable("row", b, "value found, with as many digits", "1"),
            "difference": variable("row", b - a, "value less the published one", "1"),
        },
        {"row": variable("row", np.array(labels), "tokenizer, quantity, language", "1")},
        {"dimensions": "row"},
    )
    return {"targets": derived(ds, "targets", list(found.values()), {"source": known["source"], "rows": known["rows"]})}


def value_of(found: Mapping[str, xr.Dataset], name: str, quantity: str, lang: str) -> float | None:
    """Return what was found of a tokenizer, None where the run has it not."""
    if quantity.startswith("share of "):
        ds, at = found.get(f"sources/{name}"), {"source": quantity.removeprefix("share of ")}
        return None if ds is None or at["source"] not in ds["source"].values else float(ds["share"].sel(at))
    if not lang:
        ds = found.get(f"reachability/{name}")
        return None if ds is None else float(ds["n_ids"].sel(category=quantity))
    ds = found["metrics"]
    if name not in ds["tokenizer"].values or lang not in ds["lang"].values or quantity not in ds:
        return None
    return float(ds[quantity].sel(tokenizer=name, lang=lang))


# -- claims ---------------------------------------------------------------------------------------------------
def dearest(r: Results) -> dict[str, Any]:
    """Return the largest premium of the base tokenizer, and that of the same language with the others."""
    premium = r["metrics"]["premium"]
    names = premium["tokenizer"].values.tolist()
    name = BASE if BASE in names else names[0]
    lang = str(premium["lang"].values[np.nanargmax(premium.sel(tokenizer=name).values)])
    return {f"{n}, {lang}": given(r["metrics"], "premium", tokenizer=n, lang=lang) for n in [name, *names]}


def evened(r: Results) -> dict[str, Any]:
    """Return how far the dearest language's premium lies above that of a tokenizer trained on all languages."""
    name, own = (next(iter(dearest(r).items())), "four languages")
    lang = name[0].partition(", ")[2]
    return {f"{own}, {lang}": given(r["metrics"], "premium", tokenizer=own, lang=lang), name[0]: name[1]}


def bias(r: Results) -> dict[str, Any]:
    """Return the mean total variation inside of tokens less that between them, over texts."""
    at = r["bytes"]["bias"].values
    known = at[np.isfinite(at).all(1)]

    def over(column: np.ndarray) -> Number:
        return drawn(lambda w: w @ column / w.sum(1), len(column), "texts")

    return {"inside less between": over(known[:, 1] - known[:, 0]), "between": over(known[:, 0]),
            "inside": over(known[:, 1])}  # fmt: skip


def losses(r: Results, name: str, size: int | None = None) -> dict[str, Any]:
    """Return the loss over the entropy of single symbols of the largest dictionary (or one), and of each kind."""
    out: dict[str, Any] = {}
    for kind in ("bpe", "lzw", "blocks"):
        ds = r[f"{name}/{kind}"].isel(n_train=-1)
        at = ds.isel(vocab_size=-1) if size is None else ds.sel(vocab_size=size)
        rate, single = float(ds["entropy_rate"]), float(ds["symbol_entropy"])
        out[kind] = plain((float(at["cross_entropy"]) - rate) / (single - rate))
    return out


def best_loss(r: Results) -> dict[str, Any]:
    found = losses(r, "switching")
    bound = {"share of the gap left": plain(found["bpe"].value, "strings of one source: no groups to draw")}
    return {**bound, **{k: v for k, v in found.items() if k != "bpe"}, "skewed, bpe": losses(r, "skewed")["bpe"]}


def inferred(r: Results) -> dict[str, Any]:
    """Return the largest error of a share, over all mixtures, and the error of each as it is published."""
    out: dict[str, Any] = {}
    for name, ds in r.items():
        if name.startswith("mixture/"):
            off = (ds["share_bytes"] - ds["true_share"]).values
            out[f"{ds.sizes['source']} sources, largest error"] = float(np.abs(off).max())
            out[f"{ds.sizes['source']} sources, log10 of the squared error"] = float(np.log10((off**2).mean()))
    return {"largest error": plain(max(v for k, v in out.items() if "largest" in k)),
            **{k: plain(v) for k, v in out.items()}}  # fmt: skip


def found_again(r: Results) -> dict[str, Any]:
    """Return the share of published values found to the last digit, and the others with their difference."""
    if "targets" not in r:
        return {"share found": plain(np.nan, "nobody has published values of these tokenizers")}
    ds = r["targets"]
    off = {str(x): float(v) for x, v in zip(ds["row"].values, ds["difference"].values, strict=True)}
    return {"share found": plain(np.mean([abs(v) < 1e-9 for v in off.values()])),
            **{f"{k}, difference": plain(v) for k, v in off.items() if abs(v) > 1e-9}}  # fmt: skip


CLAIMS = [
    Claim(
        "the same texts cost more tokens in other languages", "Petrov et al. 2023",
        "largest premium of a language with the first tokenizer (tokens over those of the first language)", dearest,
        ("metrics",), above=1,
    ),
    Claim(
        "a tokenizer trained on all languages alike evens them out", "Petrov et al. 2023",
        "premium of the same language", evened, ("reachability/four languages",), below=1.5,
    ),
    Claim(
        "prompts that end inside a token predict other bytes", "Phan et al. 2024",
        "total variation between exact and naive next byte, inside of tokens less between them", bias, ("bytes",),
        above=0,
    ),
    Claim(
        "with tokens a model of single tokens nears the entropy of a Markov source", "Rajaraman et al. 2024",
        "loss above the entropy rate, over that of single symbols, largest BPE dictionary", best_loss,
        ("switching/bpe",), near=(0, 0.5),
    ),
    Claim(
        "the merges of a tokenizer tell what it was trained on", "Hayase et al. 2024",
        "largest difference of a share inferred from the true one", inferred, ("mixture/2",), near=(0, 0.02),
    ),
    Claim(
        "published values are found again", "Land and Bartolo 2024, Petrov et al. 2023, Hayase et al. 2024",
        "share of the published values of these tokenizers that are found to the last digit", found_again,
        ("metrics",), near=(1, 0),
    ),
]  # fmt: skip
