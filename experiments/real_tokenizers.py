"""Checks of what is said of tokenizers, on real ones and on FLORES-200; run by ``python -m experiments.real_data``."""

from __future__ import annotations

import ast
import csv
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tokinterp as ti
from tokinterp.text import read_conll
from tokinterp.text.vocabulary import ALPHABET
from tokinterp.tokenizers import flores, tokenizer_metrics
from tokinterp.tokenizers.inference import Inference

REACHABLE = {
    "gpt2": {"ok": 49_912, "ok_special": 1, "undecodable": 344},
    "pythia": {"ok": 49_570, "ok_special": 2, "undecodable": 484, "unreachable_single": 23, "unreachable_multi": 198},
}
KINDS = {
    "pythia": {
        "control": 4, "pure_byte": 185, "char_alpha": 690, "spaced_alpha": 27_288, "inner_alpha": 17_000,
        "char_other": 63, "spaced_other": 1463, "inner_other": 2802, "fragment": 486, "char_error": 65,
        "spaced_error": 33, "inner_error": 175,
    },
    "latin": [60.18, 36.92],
    "gpt2": {"pure_byte": 150, "char_alpha": 198, "spaced_alpha": 32_100, "inner_alpha": 14_841, "fragment": 352},
}  # fmt: skip
LENGTHS = {  # of the joined sentences: GPT-2's as published, the others recomputed by the formulas
    "gpt2": {"n_tokens": [52_567, 101_774, 986_091], "n_types": 10_146, "chars_per_token": 4.9303, "fertility": 1.2265,
             "average_rank": 1433.71, "renyi_efficiency": 0.4657, "jsd": [0.7092, 0.9747], "premium": 18.759},
    "pythia": {"n_tokens": 53_286, "n_types": 10_015, "chars_per_token": 4.8638, "fertility": 1.2433,
               "average_rank": 1418.78, "renyi_efficiency": 0.4689, "jsd": [0.6906, 0.9710]},
    "text": {"n_chars": 259_170, "n_bytes": 259_396},
    "vocab_jaccard_raw": 0.5808,
}  # fmt: skip


class Outcome(NamedTuple):
    """What a check found beside what is known."""

    found: Any
    known: Any
    ok: bool


def equal(found: Any, known: Any) -> Outcome:
    return Outcome(found, known, found == known)


def tokenizer(folder: Path, name: str) -> Any:
    """Return one of the four tokenizers."""
    import transformers as tr

    here = folder / "tokenizers"
    if name == "gpt2":
        return tr.GPT2Tokenizer(vocab=str(here / "gpt2" / "encoder.json"), merges=str(here / "gpt2" / "vocab.bpe"))
    if name == "pythia":
        return tr.PreTrainedTokenizerFast(tokenizer_file=str(here / "pythia" / "20B_tokenizer.json"))
    return ti.load_tokenizer(here / "llama2" if name == "llama2" else folder / "models" / name)


def reachable_ids(folder: Path) -> Outcome:
    """Ids by category as in the reports of Land and Bartolo (2024): 221 unreachable in Pythia."""
    found = {}
    for name in REACHABLE:
        n_ids = ti.tokenizers.token_reachability(tokenizer(folder, name))["n_ids"].to_series()
        found[name] = {k: int(v) for k, v in n_ids.items() if v}
    return equal(found, REACHABLE)


def token_kinds(folder: Path) -> Outcome:
    """Ids by class as in Qtok's table, which counts 2,805 inner_other and no added tokens of Pythia's."""
    ds = ti.tokenizers.token_categories(tokenizer(folder, "pythia"))
    kinds = Counter(ds["token_kind"].values[:50_254].tolist())
    latin = ds["share_script_alpha"].sel(script="LATIN").values[1:] * 100
    gpt2 = ti.tokenizers.token_categories(tokenizer(folder, "gpt2"))["n_ids"].sel(kind=list(KINDS["gpt2"])).to_series()
    found = {"pythia": dict(kinds), "latin": latin.round(2).tolist(), "gpt2": gpt2.to_dict()}
    return equal(found, KINDS)


def token_lengths(folder: Path) -> Outcome:
    """Lengths, ranks and overlap on FLORES-200 in English, Portuguese and Shan, as in Petrov et al. (2023)."""
    langs = ["eng_Latn", "por_Latn", "shn_Mymr"]
    made = {name: tokenizer(folder, name) for name in ("gpt2", "pythia")}
    corpora = flores(folder / "flores200_dataset", langs, joined=True)
    ds = tokenizer_metrics(made, corpora, base_lang=langs[0], words="space").isel(corpus=0)
    found: dict[str, Any] = {}
    for name, known in LENGTHS.items():
        if isinstance(known, dict):
            one = ds.sel(tokenizer=name) if name in made else ds
            found[name] = {k: _rounded(one[k].values, v, k) for k, v in known.items()}
    found["vocab_jaccard_raw"] = round(float(ds["vocab_jaccard_raw"][0, 1]), 4)
    return equal(found, LENGTHS)


def _rounded(values: Any, known: Any, name: str) -> Any:
    """Return a number with the digits of the known one, or those of all languages."""
    if name == "jsd":
        return [round(float(x), 4) for x in values[0, 1:]]
    if isinstance(known, list):
        return [int(x) for x in values]
    digits = len(str(known).partition(".")[2])
    return round(float(values[-1 if name == "premium" else 0]), digits or None)


def published_splits(folder: Path) -> Outcome:
    """GPT-2's tokens of 55,865 words and pseudowords, and their chunkability, as published with cogtok.

    FOLDER/cogtok/gpt2/output.csv is results/trained_models/en/models/gpt2/output.csv of github.com/clap-lab/cogtok,
    whose tokens are byte-level spellings and chunkabilities rounded to two digits.
    """
    with (folder / "cogtok" / "gpt2" / "output.csv").open(encoding="utf-8", newline="") as stream:
        rows = [r for r in csv.DictReader(stream) if r["Stimulus"]]
    words = [r["Stimulus"] for r in rows]
    inference = Inference(tokenizer(folder, "gpt2"), space=False)
    spelt = {b: c for c, b in ALPHABET.items()}
    known = [ast.literal_eval(r["Subtokens"]) for r in rows]
    found = {}
    for method in ("own", "merges"):
        cuts = [["".join(spelt[b] for b in p) for p in cut or []] for cut in inference.cut(words, method)]
        found[method] = sum(a == b for a, b in zip(cuts, known, strict=True))
        value = [round(1 - len(c) / len(w), 2) for c, w in zip(cuts, words, strict=True)]
        found[f"{method}, chunkability"] = sum(
            abs(v - float(r["Wordiness"])) < 0.011 for v, r in zip(value, rows, strict=True)
        )
    return equal(found, dict.fromkeys(found, len(rows)))


def trained_splits(folder: Path) -> Outcome:
    """Words and pseudowords cut by three tokenizers of 1,000 tokens published with cogtok, a way of ours for each."""
    ways = {"BPE_1000": "merges", "UNI_1000": "likelihood", "WPC_1000": "longest_prefix"}
    found, known = {}, {}
    for name, way in ways.items():
        with (folder / "cogtok" / name / "output.csv").open(encoding="utf-8", newline="") as stream:
            rows = [r for r in csv.DictReader(stream) if r["Stimulus"]][::4]
        inference = Inference(ti.load_tokenizer(folder / "cogtok" / name / "trained.json"), space=False)
        cuts = inference.cut([r["Stimulus"] for r in rows], way)
        made = [[p.decode().lstrip(" ") for p in cut or []] for cut in cuts]
        said = [[p.removeprefix("##") for p in ast.literal_eval(r["Subtokens"])] for r in rows]
        found[name], known[name] = sum(a == b for a, b in zip(made, said, strict=True)), len(rows)
    return equal(found, known)


def sizes_of_languages(folder: Path) -> Outcome:
    """Longest over shortest of the 204 languages of FLORES-200, in bytes and in characters."""
    texts = {lang: next(iter(one)) for lang, one in flores(folder / "flores200_dataset", joined=True).items()}
    sizes = [[len(t.encode()) for t in texts.values()], [len(t) for t in texts.values()]]
    return equal([len(texts), *(round(max(n) / min(n), 2) for n in sizes)], [204, 4.53, 4.60])


def mixture_of_languages(folder: Path) -> Outcome:
    """Shares of four languages in 120 kB: log10 of the mean squared error, of the same text and of other sentences."""
    from .tokenizers import trained

    shares, here = np.array([0.5, 0.25, 0.15, 0.1]), folder / "flores200_dataset"
    langs = ["eng_Latn", "spa_Latn", "deu_Latn", "rus_Cyrl"]
    parts = []
    for split in ("dev", "devtest"):
        read = flores(here, langs, splits=[split]).items()
        parts.append({k: "\n".join(c).encode()[: int(120_000 * s)] for (k, c), s in zip(read, shares, strict=True)})
    same, other = ({k: t.decode("utf-8", "ignore").split("\n") for k, t in part.items()} for part in parts)
    tok, found = trained([t for texts in same.values() for t in texts], 256 + 400), []
    for texts in (same, other):
        share = ti.tokenizers.infer_mixture(tok, texts, folds=0)["share_bytes"].values
        found.append(round(float(np.log10(((share - shares) ** 2).mean())), 2))
    return Outcome(found, "at most -3.5", max(found) <= -3.5)


def multiconer(folder: Path) -> Outcome:
    """Sentences and entities of a file of MultiCoNER 2, beside a plain count of its lines.

    FOLDER/multiconer/en-dev.conll is English/en-dev.conll of github.com/OMGarad/MultiCoNER-2.
    """
    file = folder / "multiconer" / "en-dev.conll"
    read, entities, types = read_conll(file), [], []
    lines = file.read_text(encoding="utf-8").split("\n")
    for line in lines:
        columns = line.split()
        tag = columns[3] if len(columns) == 4 else "O"
        if tag.startswith("B-"):
            entities.append(columns[0])
            types.append(tag[2:])
        elif tag.startswith("I-"):
            entities[-1] += columns[0]
    found = ["".join(s.split()) for s in read.spans.strings()]
    n = sum(line.startswith("# id") for line in lines)
    good = found == entities and read.spans.type.tolist() == types
    return Outcome([len(read.texts), len(found)], [n, len(entities)], good and len(read.texts) == n)


CHECKS = (
    reachable_ids, token_kinds, token_lengths, published_splits, trained_splits, sizes_of_languages,
    mixture_of_languages, multiconer,
)  # fmt: skip
