"""The geometry of the tokens of a prompt over depth, beside shuffled text, random tokens and an untrained network.

    python -m experiments.token_geometry                                     # paper scale: Llama-3-8B, needs the hub
    python -m experiments.token_geometry --model mistralai/Mistral-7B-v0.1   # or EleutherAI/pythia-6.9b-deduped, ...
    python -m experiments.token_geometry --small                             # seconds, bundled model and texts

Defaults are those of Viswanathan et al. 2025 (arXiv 2501.10573): texts of pile-10k with at least 1,024 tokens under
every tokenizer used, the first 1,024 tokens, no BOS, one cloud per prompt and layer; 2,244 prompts for text, 50 of them
for everything that is shuffled.  A run that was stopped goes on where it was.

=============================================================  ======================================================
published                                                      how
=============================================================  ======================================================
intrinsic dimension over layers, text and S = 1..5             ``--parts dimension``; n2 = 2 (version 1), 4 (version 2)
the same over the scale (range scaling), n2 = 2..256           ``--parts dimension --scales 2,4,8,16,32,64,128,256``
overlap of neighbours of consecutive layers, k = 1..30         ``--parts overlap --k 1,2,10,30``, with chance
mean cosine; histogram of angles at tokens                     ``--parts cosine`` (cosine_diagonal is the published one)
log dimension against loss over prompts, per layer             ``--parts dimension,lens``: group correlation
dimension of the cloud of logits against softmax entropy       ``--parts logits,lens``: group logit_correlation
dimension against lens entropy at the same layer               ``--parts dimension,lens``: entropy_correlation; with
                                                               ``--tuned-lens FILE``: tuned_correlation
reciprocity and transitivity (a fork of the code)              ``--parts graph``
distinct random ids (rebuttal); 20 draws of S = 5 (version 2)  always there; ``--seed N`` gives another draw
last layer after the final norm (all of the above)             ``--last-normed``
=============================================================  ======================================================

Not published: the untrained network, partial correlations and intervals, chance levels, the random tokens and the
untrained network in every measurement.  The authors' last layer is after the final norm; by default ours is the stream.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr

import tokinterp as ti
from tokinterp.results.dataset import variable
from tokinterp.run.nulls import along_nulls, draw_null
from tokinterp.stats.tests import false_discovery
from tokinterp.text.files import read_texts

from . import pile
from .last_normed import LastNormed
from .record import beside, write

RESULTS = Path("runs/token_geometry.zarr")
PAPER_MODEL = "meta-llama/Meta-Llama-3-8B"
PARTS = ("dimension", "overlap", "cosine", "lens", "logits", "graph")
CONTROLS = ("shuffle:1", "shuffle:2", "shuffle:3", "shuffle:4", "shuffle:5", "random_ids", "untrained")


def run(
    model: ti.Model | None = None,
    texts: Sequence[str] | None = None,
    *,
    parts: Sequence[str] = PARTS,
    controls: Sequence[str] = CONTROLS,
    scales: Sequence[int] = (2, 4, 8, 16, 32, 64),
    k: Sequence[int] = (1, 2, 10, 30),
    n_tokens: int = 1024,
    limit: int | None = None,
    n_controls: int | None = 50,
    windows: bool = False,
    tuned: ti.lens.TunedLens | None = None,
    last_normed: bool = False,
    seed: int = 0,
    small: bool = False,
    out: str | Path | None = None,
    progress: bool = True,
) -> xr.DataTree:
    """Measure texts and their controls.

    Parameters
    ----------
    model : Model, optional
        The bundled one by default.
    texts : sequence of str, optional
        The bundled ones by default; texts shorter than ``n_tokens`` are left out.
    parts : sequence of str
        Of `PARTS`: what to measure.
    controls : sequence of str
        What text is compared with, see `tokinterp.measure_nulls`.
    scales, k : sequence of int
        Of the dimension, and of overlap and graph.
    n_tokens : int
        Tokens of each prompt (at most the context of the model); no BOS.
    limit : int, optional
        Prompts used.
    n_controls : int, optional
        Prompts, the first ones, that are measured under every condition; None for all.
    windows : bool
        Put the texts one after the other and cut the whole into prompts, for texts shorter than ``n_tokens``.
    tuned : TunedLens, optional
        Lens whose entropy is compared with the dimension, for text.
    last_normed : bool
        Whether the last layer is read after the final norm, as published; the lens is then of the last layer only.
    seed : int
        Of the controls.
    small : bool
        A few short prompts and three conditions, to see that everything runs.
    out : path, optional
        Where the result is written.  Each condition is kept beside it (``OUT.none.zarr``, ...).
    progress : bool
        Show bars.

    Returns
    -------
    DataTree
        A group per part, with a dimension ``null`` ("none" is text); ``correlation`` of log dimension with the loss,
        ``logit_correlation`` of the dimension of logits with entropy and loss, ``entropy_correlation`` with the entropy
        of the lens at the same layer, all per null over the common prompts; ``covariates``; and where text has more
        prompts than the controls, ``correlation_text`` over all of them.

    Raises
    ------
    ValueError
        For an unknown part or control, or if no text is long enough.
    """
    if small:
        controls, n_tokens, limit, scales = ("shuffle:5", "random_ids", "untrained"), min(n_tokens, 160), 9, (2, 4, 8)
        k, n_controls = (1, 10), None
    unknown = [p for p in parts if p not in PARTS]
    if unknown or not parts:
        raise ValueError(f"parts={list(parts)}: the parts are {', '.join(PARTS)}")
    model = ti.load_model() if model is None else model
    prompts = make_prompts(model, texts, n_tokens, limit, windows)
    common = prompts[: n_controls or len(prompts)]
    asked = measurements(parts, scales, k, [model.info.n_layers] if last_normed else None)
    settings: dict[str, Any] = {"seed": seed, "last_normed": last_normed, "out": out, "progress": progress}
    passes: dict[str, xr.DataTree] = {}
    covariates: dict[str, xr.Dataset] = {}
    for null in ("none", *controls):
        passes[null], drawn = one_pass(model, common, null, asked, **settings)
        covariates[null] = ti.geometry.prompt_covariates(drawn)
        covariates[null].attrs = {**passes[null].attrs, "measurement": "prompt_covariates"}
    nodes = side_by_side(passes)
    for name, found in correlations(passes, covariates).items():
        nodes[name] = along_nulls(found)
    nodes["covariates"] = along_nulls(covariates)
    if len(common) < len(prompts) and {"dimension", "lens"} <= {*parts}:
        whole, _ = one_pass(model, prompts, "none", asked, label="text", **settings)
        every = {"none": ti.geometry.prompt_covariates(prompts)}
        every["none"].attrs = dict(whole.attrs)
        for name, found in correlations({"none": whole}, every).items():
            nodes[f"{name}_text"] = found["none"]
    if tuned is not None:
        lens = {"lens": ti.lens.LogitLens(top=0, tokens=0, variants=("normed", "tuned"), tuned=tuned)}
        both = ti.measure(model, common, {"dimension": ti.geometry.IntrinsicDimension(scales, tokens=0), **lens},
                          store=beside(out, "tuned.zarr"), progress=progress)  # fmt: skip
        nodes["tuned_correlation"] = entropy_correlation(both, "tuned")
    tree = xr.DataTree.from_dict(nodes)
    first = next(iter(nodes.values())).attrs
    parameters = {n: json.loads(ds.attrs.get("parameters", "{}")) for n, ds in nodes.items()}
    tree.attrs = {**first, "parameters": json.dumps(parameters), "prompts": prompts.hash}
    tree.attrs |= {"n_prompts": len(prompts), "n_common": len(common)}
    tree.attrs["n_tokens"] = int(max(prompts.lengths))
    ti.check(tree)
    if out is not None:
        ti.write(tree, out, overwrite=True)
    return tree


def make_prompts(
    model: ti.Model, texts: Sequence[str] | None, n_tokens: int, limit: int | None = None, windows: bool = False
) -> ti.Prompts:
    """Return prompts of exactly so many tokens (or as many as the model takes), without BOS."""
    texts = [t.text for t in ti.bundled_texts()] if texts is None else [t.strip() for t in texts]
    n_tokens = min(n_tokens, model.info.max_tokens)
    if windows:
        # In parts of some windows, so that no single text is endless.
        texts = ["\n\n".join(texts[i : i + 50]) for i in range(0, len(texts), 50)]
    on_long = "window" if windows else "truncate"
    options: dict[str, Any] = {"max_tokens": n_tokens, "min_tokens": n_tokens, "on_long": on_long, "bos": False}
    prompts = ti.Prompts.from_texts(texts, model, **options, progress=False)
    return prompts[: limit or len(prompts)]


def measurements(
    parts: Sequence[str], scales: Sequence[int], k: Sequence[int], lens_layers: Sequence[int] | None = None
) -> dict[str, ti.Measurement]:
    """Return the measurements of the parts."""
    all_parts: dict[str, ti.Measurement] = {
        "dimension": ti.geometry.IntrinsicDimension(scales, tokens=0, small="nan"),
        "overlap": ti.geometry.NeighbourOverlap(k, pairs=False, labels=(), small="nan"),
        "cosine": ti.geometry.CosineSimilarity(),
        "lens": ti.lens.LogitLens(lens_layers, top=0, tokens=0),
        "logits": ti.geometry.LogitDimension(scales, small="nan"),
        "graph": ti.geometry.NeighbourGraph(k, small="nan"),
    }
    return {name: all_parts[name] for name in PARTS if name in parts}


def one_pass(
    model: Any, prompts: ti.Prompts, null: str, asked: dict[str, ti.Measurement], *, seed: int = 0,
    last_normed: bool = False, out: str | Path | None = None, label: str | None = None, progress: bool = True,
) -> tuple[xr.DataTree, ti.Prompts]:  # fmt: skip
    """Measure one condition, or read what was measured before, and return it with the prompts drawn."""
    network, drawn = draw_null(model, prompts, null, seed)
    if last_normed:
        network: Any = LastNormed(network)
    store = beside(out, f"{label or null}.zarr")
    return ti.measure(network, drawn, copy.deepcopy(asked), store=store, progress=progress), drawn


def side_by_side(passes: dict[str, xr.DataTree]) -> dict[str, xr.Dataset]:
    """Return each part with all conditions along ``null``."""
    first = next(iter(passes.values()))
    names = [n for n in first.children if n != "prompts"]
    return {
        n: along_nulls({null: p.children[n].to_dataset(inherit=False) for null, p in passes.items()}) for n in names
    }


def correlations(passes: dict[str, xr.DataTree], covariates: dict[str, xr.Dataset]) -> dict[str, dict[str, xr.Dataset]]:
    """Return the correlations over prompts that the parts allow, by name and condition."""
    out: dict[str, dict[str, xr.Dataset]] = {}
    for null, tree in passes.items():
        parts = {n: tree.children[n].to_dataset(inherit=False) for n in tree.children}
        if "lens" not in parts:
            continue
        if "dimension" in parts:
            found = ti.geometry.dimension_loss_correlation(
                without_embedding(parts["dimension"]), parts["lens"], covariates[null]
            )
            out.setdefault("correlation", {})[null] = found
            if parts["lens"].sizes["layer"] > 1:
                out.setdefault("entropy_correlation", {})[null] = entropy_correlation(tree)
        if "logits" in parts:
            for loss in ("entropy", "cross_entropy"):
                found = ti.geometry.dimension_loss_correlation(
                    parts["logits"], parts["lens"], covariates[null], loss=loss
                )
                out.setdefault(f"logit_correlation_{loss}", {})[null] = found
    return out


def without_embedding(dimension: xr.Dataset) -> xr.Dataset:
    """Return the layers after the first block: at layer 0 a cloud has one point per kind of token."""
    return dimension.sel(layer=dimension["layer"] > 0)


def entropy_correlation(tree: xr.DataTree, variant: str = "normed") -> xr.Dataset:
    """Correlate log dimension with the entropy of a lens at the *same* layer; q over layers."""
    dimension = without_embedding(tree.children["dimension"].to_dataset(inherit=False))
    lens = tree.children["lens"].to_dataset(inherit=False).sel(variant=[variant])
    one = [
        ti.geometry.dimension_loss_correlation(dimension.sel(layer=[n]), lens.sel(layer=n), loss="entropy")
        for n in dimension["layer"].values
    ]
    out = xr.concat(one, "layer", data_vars="all", coords="minimal", compat="override", combine_attrs="override")
    for kind in ("pearson", "spearman"):
        p = out[f"{kind}_p"]
        q = xr.apply_ufunc(false_discovery, p, input_core_dims=[["layer"]], output_core_dims=[["layer"]],
                           vectorize=True).transpose(*p.dims)  # fmt: skip
        text = out[f"{kind}_q"].attrs["long_name"].replace("of one test", "over layers")
        out[f"{kind}_q"] = variable([str(d) for d in p.dims], q.values, text, "1")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.token_geometry", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", default=PAPER_MODEL, help="hub name, folder, or bundled")
    parser.add_argument("--dtype", help="the paper has bfloat16 (version 1) and float32 (version 2)")
    parser.add_argument("--texts", help="files with texts; pile-10k from the hub when left out", nargs="+")
    parser.add_argument("--tokenizers", nargs="*", default=pile.TOKENIZERS, help="every text is long under all of them")
    parser.add_argument("--windows", action="store_true", help="join the texts and cut the whole into prompts")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--controls", default=",".join(CONTROLS))
    parser.add_argument("--scales", default="2,4,8,16,32,64")
    parser.add_argument("--k", default="1,2,10,30")
    parser.add_argument("--n-tokens", type=int, default=1024)
    parser.add_argument("--limit", type=int, help="prompts of text")
    parser.add_argument("--n-controls", type=int, default=50, help="prompts under every condition; 0 for all")
    parser.add_argument("--tuned-lens", type=Path, help="file or folder of a tuned lens")
    parser.add_argument("--last-normed", action="store_true", help="last layer after the final norm, as published")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="the bundled model and texts, a few short prompts")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--json", type=Path, help="summary to write")
    args = parser.parse_args()
    bundled = args.small or args.model == "bundled"
    model = ti.load_model() if bundled else ti.load_model(args.model, dtype=args.dtype)
    texts = None
    if args.texts:
        texts = [t for file in args.texts for t in read_texts(file)]
    elif not bundled:
        texts = pile.read_pile()
        kept = pile.long_in_all(texts, [*args.tokenizers, model], args.n_tokens)
        if note := pile.difference_from_authors(kept):
            print(f"note: {note}")
        texts = [texts[i] for i in kept]
    numbers: dict[str, Any] = {n: [int(x) for x in getattr(args, n).split(",")] for n in ("scales", "k")}
    tree = run(
        model, texts, parts=args.parts.split(","), controls=[c for c in args.controls.split(",") if c], **numbers,
        n_tokens=args.n_tokens, limit=args.limit, n_controls=args.n_controls or None, windows=args.windows,
        tuned=args.tuned_lens and ti.lens.TunedLens.load(args.tuned_lens), last_normed=args.last_normed, seed=args.seed,
        small=args.small, out=args.out,
    )  # fmt: skip
    from .token_geometry_summary import sentences, summarise

    record = summarise(tree)
    for line in sentences(record):
        print("-", line)
    if args.json is not None:
        print(write(record, args.json))


if __name__ == "__main__":
    main()
