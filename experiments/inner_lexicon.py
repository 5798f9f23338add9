"""The inner lexicon: words told from non-words, split and misspelt words found again, attention to the pieces.

    python -m experiments.inner_lexicon                   # Llama-2-7b, WikiText-103, 10,000 words of each kind
    python -m experiments.inner_lexicon --small           # seconds: bundled model and texts, few words
    python -m experiments.inner_lexicon --model bundled --words 120 --probe-words 2000 --context 32 --n-tokens 256

Defaults are those of Kaplan et al. 2025 (arXiv 2410.05864).  Everything is done for the model and for an untrained copy
of it, with the same words:

====================  =================================================================================================
published             here
====================  =================================================================================================
words or not          ``probe``: words against non-words, k = 4, last and penultimate token; non-words that the
                      tokenizer would cut as they are, matched in each part of the cross-validation
split, misspelt       ``split``: words of one token cut into 2 to 5, or misspelt: reverse logit lens in 8 variants
several tokens        ``natural``: words of several tokens, repeated from the state of their last token
attention             ``pieces``: attention from the last to the earlier tokens, against one-token words
====================  =================================================================================================

and, beside it, ``canonicity`` (Busigin and Pinter 2026, arXiv 2606.08562).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.text import read_texts

from .record import about, write

RESULTS = Path("runs/inner_lexicon.zarr")
PAPER_MODEL = "meta-llama/Llama-2-7b-hf"
PAPER_TEXTS = "Salesforce/wikitext:wikitext-103-raw-v1"
MODELS = ("trained", "untrained")


def run(
    model: ti.Model | None = None,
    texts: Sequence[str] | None = None,
    *,
    n_words: int = 10_000,
    n_probe: int | None = None,
    sizes: Sequence[int] = (2, 3, 4, 5),
    min_letters: int = 4,
    context: int = 64,
    n_tokens: int = 512,
    untrained: bool = True,
    small: bool = False,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> xr.DataTree:
    """Measure a model and its untrained copy.

    Parameters
    ----------
    model : HookedLM, optional
        The bundled one by default.
    texts : sequence of str, optional
        Where the words are found; the bundled ones by default.
    n_words : int
        Words of each kind, or as many as there are.
    n_probe : int, optional
        Words and non-words of the probe; ``n_words`` by default.
    sizes : sequence of int
        Pieces of a split word, and tokens of a word of several.
    min_letters : int
        Of a word.
    context : int
        Most tokens before a word.
    n_tokens : int
        Of each prompt that the texts are cut into.
    untrained : bool
        Whether to measure the untrained copy too.
    small : bool
        A few words of each kind and short texts, to see that everything runs.
    seed : int
        Of everything that is drawn.
    out : path, optional
        Where the result is written.
    progress : bool
        Show bars.

    Returns
    -------
    DataTree
        Groups ``trained`` and ``untrained``, each with probe, split, canonicity, natural and pieces.
    """
    loaded: Any = ti.load_model() if model is None else model
    texts = [t.text for t in ti.bundled_texts()] if texts is None else list(texts)
    if small:
        texts, n_words, n_probe, context, n_tokens = texts[:24], min(n_words, 10), 100, 16, 128
    n_probe = n_probe or n_words
    n_tokens = min(n_tokens, loaded.info.max_tokens)
    prompts = ti.Prompts.from_texts(
        texts, loaded, max_tokens=n_tokens, on_long="window", on_empty="drop", min_tokens=2, progress=progress
    )
    lexicon = ti.lexicon.Lexicon.of(prompts)
    options: dict[str, Any] = {"n_words": n_words, "min_letters": min_letters, "context": context, "seed": seed}
    single = ti.lexicon.split_cases(lexicon, sizes, **options) + ti.lexicon.typo_cases(lexicon, **options)
    natural = ti.lexicon.natural_cases(lexicon, sizes, **options)
    items = ti.lexicon.words_and_nonwords(lexicon, n_probe, sizes=sizes, min_letters=min_letters, seed=seed)
    found: dict[str, xr.Dataset] = {}
    for name in MODELS[: 2 if untrained else 1]:
        one = loaded if name == "trained" else ti.untrained(loaded, seed)
        asked = {"pieces": ti.lexicon.PieceAttention([n for n in sizes if n < 5])}
        found |= {
            f"{name}/probe": ti.lexicon.word_probe(one, items, seed=seed),
            f"{name}/split": ti.lexicon.retrieve_words(one, single),
            f"{name}/canonicity": ti.lexicon.canonicity(one, single),
            f"{name}/natural": ti.lexicon.repeat_words(one, natural),
            f"{name}/pieces": ti.measure(one, prompts[:16] if small else prompts, asked, progress=progress)
            .children["pieces"]
            .to_dataset(inherit=False),
        }
    tree = xr.DataTree.from_dict(found)
    parameters = {**options, "sizes": list(sizes), "n_tokens": n_tokens, "probe_words": n_probe}
    tree.attrs = {**found["trained/split"].attrs, "prompts": prompts.hash, "parameters": json.dumps(parameters)}
    ti.check(tree)
    if out is not None:
        ti.write(tree, out, overwrite=True)
    return tree


def summarise(tree: xr.DataTree) -> dict[str, Any]:
    """Return the curves and shares of a result as short lists, rounded to four digits."""
    out: dict[str, Any] = {**about("inner_lexicon", tree.attrs), "parameters": json.loads(tree.attrs["parameters"])}
    for name, node in tree.children.items():
        probe, split, near, natural, pieces = (
            node[k].to_dataset() for k in ("probe", "split", "canonicity", "natural", "pieces")
        )
        mine: dict[str, Any] = {"model": split.attrs["model"], "probe": {}, "retrieval": {}, "canonicity": {}}
        for place in probe["subset"].values.tolist():
            one = probe.sel(subset=place)
            mine["probe"][place] = {
                "accuracy": curve(one["accuracy"]),
                "lower": curve(one["accuracy_interval"].sel(bound="lower")),
                "upper": curve(one["accuracy_interval"].sel(bound="upper")),
                "words": int(one["n_words"]),
                "nonwords": int(one["n_nonwords"]),
            }
        for variant in split["variant"].values.tolist():
            one = split.sel(variant=variant)
            mine["retrieval"][variant] = {
                "by_layer": curve(one["retrieved"].mean("prompt")),
                "median_rank": curve(one["rank"].median("prompt")),
                "never": round(float(one["first_layer"].isnull().mean()), 4),
                "never_by_case": {
                    d: round(float(one["first_layer"].isel(prompt=rows).isnull().mean()), 4)
                    for d, rows in groups(split).items()
                },
            }
        for variant in near["variant"].values.tolist():
            one = near.sel(variant=variant)
            mine["canonicity"][variant] = {k: curve(one[k].mean("prompt")) for k in ("canonicity", "control", "closer")}
            mine["canonicity"][variant]["closer_by_case"] = {
                d: curve(one["closer"].isel(prompt=rows).mean("prompt")) for d, rows in groups(near).items()
            }
        mine["cases"] = {d: len(rows) for d, rows in groups(split).items()}
        mine["natural"] = {
            "cases": natural.sizes["prompt"],
            "by_layer": curve(natural["success"].mean("prompt")),
            "never": round(float(natural["first_layer"].isnull().mean()), 4),
        }
        mine["attention"] = {
            str(n): {k: curve(pieces[k].sel(pieces=n).mean("prompt")) for k in ("attention", "control")}
            for n in pieces["pieces"].values.tolist()
        }
        out[name] = mine
    return out


def groups(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """Return the places of the cases of each kind."""
    return {d: np.flatnonzero(ds["detail"].values == d) for d in sorted(set(ds["detail"].values.tolist()))}


def curve(values: xr.DataArray) -> list[float | None]:
    """Return rounded numbers, None where there is none."""
    return [None if np.isnan(v) else round(float(v), 4) for v in values.values]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.inner_lexicon", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", help=f"hub name, folder or bundled; {PAPER_MODEL}, with --small the bundled one")
    parser.add_argument("--texts", help=f"file or hub name; {PAPER_TEXTS}, for the bundled model the bundled ones")
    parser.add_argument("--limit", type=int, default=100_000, help="texts read")
    parser.add_argument("--words", type=int, default=10_000, help="words of each kind")
    parser.add_argument("--probe-words", type=int, help="words and non-words of the probe; --words by default")
    parser.add_argument("--context", type=int, default=64, help="most tokens before a word")
    parser.add_argument("--n-tokens", type=int, default=512, help="tokens of each prompt")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--json", type=Path, help="write a short summary there")
    parser.add_argument("--small", action="store_true", help="few words; bundled model and texts")
    args = parser.parse_args()
    bundled = args.model == "bundled" or (args.small and args.model is None)
    model = ti.load_model(None if bundled else args.model or PAPER_MODEL)
    source = args.texts or (None if bundled or args.small else PAPER_TEXTS)
    texts = None if source is None else read_texts(source, limit=args.limit)
    tree = run(
        model, texts, n_words=args.words, n_probe=args.probe_words, context=args.context, n_tokens=args.n_tokens,
        small=args.small, out=args.out,
    )  # fmt: skip
    print(tree)
    if args.json is not None:
        write(summarise(tree), args.json)


if __name__ == "__main__":
    main()
