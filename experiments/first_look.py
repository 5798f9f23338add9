"""Text against shuffled text: intrinsic dimension, spectrum and logit lens over depth.

    python -m experiments.first_look --out runs/first_look.zarr [--small]

Each text is cut into 4**S blocks of tokens whose order is drawn anew, S = 0 (the text) to 5 (single tokens), and every
level is measured in one pass.  The defaults are those of Viswanathan et al. 2025 (arXiv 2501.10573): the first 1,024
tokens of texts that are at least so long, one cloud per prompt and layer, GRIDE at n2 = 2 to 64; but the model and the
texts are the bundled ones, where the paper has 7B models and 2,244 prompts of the Pile, 50 of them shuffled.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.results.dataset import variable
from tokinterp.text import shuffle_blocks

from .record import beside

RESULTS = Path("runs/first_look.zarr")


def run(
    model: ti.Model | None = None,
    texts: Sequence[str] | None = None,
    *,
    levels: Sequence[int] = (0, 1, 2, 3, 4, 5),
    n_tokens: int = 1024,
    limit: int | None = 24,
    scales: Sequence[int] = (2, 4, 8, 16, 32, 64),
    small: bool = False,
    out: str | Path | None = None,
    progress: bool = True,
) -> xr.DataTree:
    """Measure texts at every level of shuffling.

    Parameters
    ----------
    model : Model, optional
        The bundled one by default.
    texts : sequence of str, optional
        The bundled ones by default; shorter ones than ``n_tokens`` are left out.
    levels : sequence of int
        S of the shuffles.
    n_tokens : int
        Tokens of each prompt, BOS counted.
    limit : int, optional
        Prompts used.
    scales : sequence of int
        Of the intrinsic dimension.
    small : bool
        A few short prompts, two levels and three scales, to see that everything runs.
    out : path, optional
        Where the result is written; each level is kept beside it until then, so that a run that was stopped goes on.
    progress : bool
        Show bars.

    Returns
    -------
    DataTree
        Groups dimension, spectrum and lens, each with a dimension ``shuffle``.
    """
    if small:
        levels, n_tokens, limit, scales = (0, 5), min(n_tokens, 160), 4, (2, 4, 8)
    model = ti.load_model() if model is None else model
    texts = [t.text for t in ti.bundled_texts()] if texts is None else texts
    n_tokens = min(n_tokens, model.info.max_tokens)
    prompts = ti.Prompts.from_texts(texts, model, max_tokens=n_tokens, min_tokens=n_tokens, progress=progress)
    prompts = prompts[: limit or len(prompts)]
    found: dict[str, dict[int, xr.Dataset]] = {}
    for level in levels:
        asked = {
            "dimension": ti.geometry.IntrinsicDimension(scales=scales, tokens=0, small="nan"),
            "spectrum": ti.geometry.Spectrum(),
            "lens": ti.lens.LogitLens(top=0, tokens=0),
        }
        store = beside(out, f"shuffle_{level}.zarr")
        one = ti.measure(model, shuffle_blocks(prompts, level), asked, store=store, progress=progress)
        for name in asked:
            found.setdefault(name, {})[level] = one.children[name].to_dataset(inherit=False)
    tree = xr.DataTree.from_dict({name: along_shuffle(results) for name, results in found.items()})
    tree.attrs = {
        **tree["lens"].attrs,
        "parameters": json.dumps({n: json.loads(ds.attrs["parameters"]) for n, ds in tree.items()}),
    }
    ti.check(tree)
    if out is not None:
        ti.write(tree, out, overwrite=True)
    return tree


def along_shuffle(results: dict[int, xr.Dataset]) -> xr.Dataset:
    """Put the results of all levels side by side along ``shuffle``."""
    same = {str(level): ds.drop_dims("token", errors="ignore") for level, ds in results.items()}
    out = ti.concat_models(same).rename(model="shuffle")
    name = "level of shuffling: 4**S blocks of tokens in random order"
    return out.assign_coords(shuffle=variable("shuffle", np.array(list(results)), name, "1"))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.first_look", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", default=None, help="hub name or folder; the bundled model when left out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="a few short prompts, to see that everything runs")
    args = parser.parse_args()
    print(run(ti.load_model(args.model), small=args.small, out=args.out))


if __name__ == "__main__":
    main()
