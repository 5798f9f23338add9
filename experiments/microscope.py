"""What LLM-Microscope looks at: linearity, nonlinearity and context by kind of token, lenses, deletion of words.

    python -m experiments.microscope                                  # paper scale: Llama-3-8B, needs the hub
    python -m experiments.microscope --texts enwik8.txt --mmlu data   # the authors' corpus, and answers to questions
    python -m experiments.microscope --small                          # seconds, bundled model and texts

Razzhigaev et al. 2025 (arXiv 2502.15007) and "Your Transformer is Secretly Linear" (arXiv 2405.12250). The corpus
recipe is that of the released notebook: 128 chunks of 512 characters drawn with ``random.seed(0)``, BOS on, all tokens
in one cloud; the authors cut enwik8 (``--texts``), the default is pile-10k, which every ``datasets`` can load.
``--chunks 0`` takes windows of ``--n-tokens`` tokens instead. A run that was stopped goes on where it was.

===============================================================  =====================================================
published                                                        how
===============================================================  =====================================================
linearity of the blocks ("Procrustes similarity")                ``--parts linearity``: group linearity_all is as
                                                                 published; linearity is without BOS and massive rows;
                                                                 both raw, adjusted and held out
linearity without the residual stream; norm ratio                the same groups
anisotropy over depth                                            ``--parts linearity``: group spectrum, subset "all"
nonlinearity of tokens over layers (eq. 1, 2)                    ``--parts tokens``: by class of token
contextual memory, histograms by part of speech (section 3.2)    ``--parts memory``: trained decoder, by class of token;
                                                                 ``--parts tokens``: recall, a probe without training
correlation of nonlinearity and contextual memory (table 2)      ``--parts tokens,memory``
layer contribution, logit lens (sections 3.3, 3.4)               ``--parts lens``: raw (paper), normed, tuned
deletion of stop words, punctuation, articles (table 1)          ``--parts removal``: loss of what is left; ``--mmlu``:
                                                                 accuracy, McNemar tests
===============================================================  =====================================================

Not published: shuffled text and the untrained network beside everything, random deletion at the same rate, intervals
over prompts, correlations at equal prefix length.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.run.nulls import along_nulls, draw_null
from tokinterp.text.files import read_texts
from tokinterp.text.removal import CONDITIONS

from . import microscope_parts as found
from . import pile
from .record import write

RESULTS = Path("runs/microscope.zarr")
PAPER_MODEL = "meta-llama/Meta-Llama-3-8B"
PARTS = ("linearity", "tokens", "memory", "lens", "removal")
CONTROLS = ("shuffle:5", "untrained")
CHUNKS, CHARACTERS = 128, 512


@dataclass
class Settings:
    """How long is trained, and how many prompts the dear parts look at."""

    steps: int = 2000  # of the context decoder
    rows: int = 64
    max_prefix: int = 32
    lr: float = 1e-4  # of the copy; small models need more
    lr_new: float = 1e-3
    lens_steps: int = 100
    lens_tokens: int = 2048
    lens_prompts: int | None = None
    removal_prompts: int | None = None
    conditions: Sequence[str] = CONDITIONS
    n_words: int = 256  # vocabulary of the recall probe
    seed: int = 0
    mmlu: Sequence[ti.behaviour.Item] = field(default=(), repr=False)


SMALL = {"steps": 6, "rows": 8, "max_prefix": 8, "lens_steps": 1, "lens_tokens": 128, "lens_prompts": 4,
         "removal_prompts": 4, "n_words": 32,
         "conditions": ("stop words", "articles")}  # fmt: skip


def run(
    model: ti.Model | None = None,
    texts: Sequence[str] | None = None,
    train_texts: Sequence[str] | None = None,
    *,
    parts: Sequence[str] = PARTS,
    controls: Sequence[str] = CONTROLS,
    chunks: int = 0,
    n_tokens: int = 512,
    min_tokens: int | None = None,
    limit: int | None = 200,
    settings: Mapping[str, Any] | None = None,
    small: bool = False,
    out: str | Path | None = None,
    progress: bool = True,
) -> xr.DataTree:
    """Measure texts and their controls.

    Parameters
    ----------
    model : Model, optional
        The bundled one by default.
    texts, train_texts : sequence of str, optional
        What is measured, and what decoder and tuned lens are trained on. The bundled texts by default; without
        ``train_texts`` the last third of the texts is kept for training.
    parts, controls : sequence of str
        Of `PARTS`; and what text is compared with, see `tokinterp.measure_nulls`.
    chunks : int
        So many chunks of 512 characters, as published; 0 for windows of ``n_tokens`` tokens, drawn at random.
    n_tokens, min_tokens : int
        Most and least tokens of a window; the least is four fifths of the most by default.
    limit : int, optional
        Windows used.
    settings : mapping, optional
        Fields of `Settings`.
    small : bool
        A few short prompts and steps, to see that everything runs.
    out : path, optional
        Where the result is written. What was measured or trained is kept beside it (``OUT.tokens.none.zarr``, ...).
    progress : bool
        Show bars.

    Returns
    -------
    DataTree
        Groups with a dimension ``null`` ("none" is text): linearity, linearity_all, spectrum, nonlinearity, recall,
        recall_layers, memory, memory_length, correlation, lens, removal, mmlu.

    Raises
    ------
    ValueError
        For an unknown part, or if no text is long enough.
    """
    chosen = Settings(**{**(SMALL if small else {}), **(settings or {})})
    if small:
        n_tokens, min_tokens, limit = min(n_tokens, 120), 40, 16
    if unknown := [p for p in parts if p not in PARTS]:
        raise ValueError(f"parts={list(parts)}: {unknown[0]!r} is none of {', '.join(PARTS)}")
    model = ti.load_model() if model is None else model
    texts = [t.text for t in ti.bundled_texts()] if texts is None else list(texts)
    if train_texts is None:
        cut = max(1, len(texts) * 2 // 3)
        texts, train_texts = texts[:cut], texts[cut:]
    n_tokens = min(n_tokens, model.info.max_tokens)
    prompts = make_prompts(model, texts, chunks, n_tokens, min_tokens, limit, chosen.seed)
    train = make_prompts(model, train_texts, 0, n_tokens, 2, 4 * len(prompts), chosen.seed)
    labels, nodes, spent = found.labels_of(prompts), {}, {}
    for part in [*(p for p in PARTS if p in parts), *(["mmlu"] if len(chosen.mmlu) else [])]:
        start, results = time.time(), {}
        for null in ("none", *controls):
            if part == "mmlu" and null not in ("none", "untrained"):
                continue
            network, drawn = draw_null(model, prompts, null, chosen.seed)
            case = found.Case(network, drawn, null, labels, out, progress)
            case.train = lambda null=null: draw_null(model, train, null, chosen.seed)[1]
            case.text = prompts
            for name, ds in getattr(found, part)(case, chosen).items():
                results.setdefault(name, {})[null] = ds
        nodes.update({name: along_nulls(sets) for name, sets in results.items()})
        spent[part] = round(time.time() - start, 1)
    tree = xr.DataTree.from_dict(nodes)
    first = next(iter(nodes.values())).attrs
    tree.attrs = {k: v for k, v in first.items() if k != "measurement"}
    tree.attrs["parameters"] = json.dumps({n: ds.attrs.get("parameters", "") for n, ds in nodes.items()})
    tree.attrs |= {"prompts": prompts.hash, "train_prompts": train.hash}
    tree.attrs |= {"n_prompts": len(prompts), "n_tokens": prompts.n_tokens, "n_train_tokens": train.n_tokens}
    kept = {k: v for k, v in vars(chosen).items() if k != "mmlu"}
    tree.attrs |= {"settings": json.dumps(kept), "seconds": json.dumps(spent)}
    ti.check(tree)
    if out is not None:
        ti.write(tree, out, overwrite=True)
    return tree


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


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.microscope", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", default=PAPER_MODEL, help="hub name, folder, or bundled")
    parser.add_argument("--dtype")
    parser.add_argument("--texts", nargs="+", help="files with texts (enwik8, say); pile-10k when left out")
    parser.add_argument("--train-texts", nargs="+", help="files for decoder and lens; else the last third of the texts")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--controls", default=",".join(CONTROLS))
    parser.add_argument("--chunks", type=int, default=CHUNKS, help="of 512 characters; 0 for windows of tokens")
    parser.add_argument("--n-tokens", type=int, default=512)
    parser.add_argument("--min-tokens", type=int)
    parser.add_argument("--limit", type=int, default=200, help="windows used")
    for name in ("steps", "max-prefix", "lens-steps", "lens-prompts", "removal-prompts", "seed"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("lr", "lr-new"):
        parser.add_argument(f"--{name}", type=float, help="learning rate of the context decoder")
    parser.add_argument("--mmlu", type=Path, help="folder or tar file of MMLU: accuracy after deletions")
    parser.add_argument("--mmlu-limit", type=int, help="questions of each subject")
    parser.add_argument("--small", action="store_true", help="the bundled model and texts, a few short prompts")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--json", type=Path, help="summary to write")
    args = parser.parse_args()
    bundled = args.small or args.model == "bundled"
    model = ti.load_model() if bundled else ti.load_model(args.model, dtype=args.dtype)
    read: Callable[[list[str] | None], list[str] | None] = lambda files: (  # noqa: E731
        [t for file in files for t in read_texts(file)] if files else None
    )
    texts = read(args.texts)
    if texts is None and not bundled:
        texts = pile.read_pile()
    given = {n: getattr(args, n) for n in vars(Settings()) if hasattr(args, n) and n != "mmlu"}
    settings = {n: v for n, v in given.items() if v is not None}
    if args.mmlu is not None:
        settings["mmlu"] = ti.behaviour.read_mmlu(args.mmlu, limit=args.mmlu_limit)
    tree = run(
        model, texts, read(args.train_texts), parts=[p for p in args.parts.split(",") if p],
        controls=[c for c in args.controls.split(",") if c], chunks=0 if bundled else args.chunks,
        n_tokens=args.n_tokens, min_tokens=args.min_tokens, limit=args.limit, settings=settings, small=args.small,
        out=args.out,
    )  # fmt: skip
    from .microscope_summary import sentences, summarise

    record = summarise(tree)
    for line in sentences(record):
        print("-", line)
    if args.json is not None:
        print(write(record, args.json))


if __name__ == "__main__":
    main()
