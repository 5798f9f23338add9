"""Numbers of the released results of Viswanathan et al. 2025 against ours: target, value and difference, per layer.

    python -m experiments.reproduction                                         # GPT-2, all 2,244 prompts; needs the hub
    python -m experiments.reproduction --model EleutherAI/pythia-160m-deduped
    python -m experiments.reproduction --documents 0,3218                      # two prompts, seconds

The prompts are the texts of pile-10k with at least 1,024 tokens under every tokenizer of the authors, cut to 1,024
tokens, no BOS; weights in float32.  Two of those tokenizers (Llama-3, Mistral) ask for a licence on the hub: without
them, ``--tokenizers EleutherAI/pythia-6.9b-deduped facebook/opt-6.7b`` leaves more texts, the difference is printed,
and means over prompts are then not comparable to the second decimal.  ``--documents`` needs no other tokenizer.

Targets are in `reproduction_targets.json`.  Their last layer is after the final norm (`LastNormed`).  A correct run
should lie within about 0.05 of each, the authors' distances being in float32 without centring.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.results.dataset import variable

from . import pile
from .last_normed import LastNormed
from .record import beside

TARGETS = Path(__file__).with_name("reproduction_targets.json")
RESULTS = Path("runs/reproduction.zarr")
MODEL = "openai-community/gpt2"


class Line(NamedTuple):
    """One number to be reproduced.

    Attributes
    ----------
    what : str
        ``loss``, ``dimension``, ``pearson``.
    where : str
        ``mean`` or ``std`` over prompts, or ``text N`` for one prompt.
    scale, layer : int or None
        n2 of GRIDE; blocks applied.
    target, value : float
        Published and ours; ours is NaN where it was not measured.
    """

    what: str
    where: str
    scale: int | None
    layer: int | None
    target: float
    value: float

    @property
    def difference(self) -> float:
        """Ours less published."""
        return self.value - self.target


def run(
    model: ti.Model | None = None,
    texts: Sequence[str] | None = None,
    *,
    documents: Sequence[int] | None = None,
    targets: Mapping[str, Any] | None = None,
    n_tokens: int = 1024,
    scales: Sequence[int] = (2, 4, 8),
    small: bool = False,
    out: str | Path | None = None,
    progress: bool = True,
) -> xr.DataTree:
    """Measure dimension and loss of texts as published.

    Parameters
    ----------
    model : Model, optional
        The bundled one by default (which has no targets).
    texts : sequence of str, optional
        The bundled ones by default; each must have ``n_tokens`` tokens, others are left out.
    documents : sequence of int, optional
        Number of each text in pile-10k, by which targets of single prompts are found; its place in ``texts`` by
        default.
    targets : mapping, optional
        What to compare with, as one entry of ``models`` in `reproduction_targets.json`; by the model's name by default,
        and nothing if it is not there.
    n_tokens : int
        Tokens of each prompt, no BOS.
    scales : sequence of int
        n2 of GRIDE; scales of the targets that are not among them come out as NaN.
    small : bool
        A few short prompts of the bundled texts.
    out : path, optional
        Where the result is written; the run resumes.
    progress : bool
        Show a bar.

    Returns
    -------
    DataTree
        Groups ``dimension`` and ``lens`` (last layer) per prompt, ``correlation`` over prompts, and ``comparison`` with
        target, value and difference.
    """
    if small:
        n_tokens, scales = min(n_tokens, 128), (2, 4)
    model = ti.load_model() if model is None else model
    texts = [t.text for t in ti.bundled_texts()][: 9 if small else None] if texts is None else list(texts)
    numbers = np.arange(len(texts)) if documents is None else np.asarray(documents)
    if len(numbers) != len(texts):
        raise ValueError(f"{len(numbers)} documents for {len(texts)} texts: give each text its number in pile-10k")
    wanted = read_targets().get(model.info.id, {}) if targets is None else targets
    length = min(n_tokens, model.info.max_tokens)
    options: dict[str, Any] = {"max_tokens": length, "min_tokens": length, "bos": False, "progress": progress}
    prompts = ti.Prompts.from_texts([t.strip() for t in texts], model, **options)
    asked = {
        "dimension": ti.geometry.IntrinsicDimension(scales, tokens=0, small="nan", exclude=()),  # no token is left out
        "lens": ti.lens.LogitLens([model.info.n_layers], top=0, tokens=0),
    }
    store = beside(out, "pass.zarr")
    network: Any = LastNormed(model)
    tree = ti.measure(network, prompts, asked, store=store, progress=progress)
    nodes = {name: tree.children[name].to_dataset(inherit=False) for name in asked}
    number = variable("prompt", numbers[prompts.documents], "number of the text in the input data set", "1")
    nodes = {name: ds.assign_coords(document=number) for name, ds in nodes.items()}
    after = nodes["dimension"].sel(layer=nodes["dimension"]["layer"] > 0)
    nodes["correlation"] = ti.geometry.dimension_loss_correlation(after, nodes["lens"])
    lines = list(compare(nodes["dimension"], nodes["lens"], nodes["correlation"], wanted))
    if lines:
        nodes["comparison"] = as_dataset(lines, nodes["lens"].attrs)
    result = xr.DataTree.from_dict(nodes)
    parameters = {n: json.loads(ds.attrs["parameters"]) for n, ds in nodes.items()}
    result.attrs = {**tree.attrs, "parameters": json.dumps(parameters), "n_prompts": len(prompts)}
    ti.check(result)
    if out is not None:
        ti.write(result, out, overwrite=True)
    return result


def read_targets() -> dict[str, Any]:
    """Return the targets by hub name."""
    return json.loads(TARGETS.read_text(encoding="utf-8"))["models"]


def compare(
    dimension: xr.Dataset, lens: xr.Dataset, correlation: xr.Dataset, targets: Mapping[str, Any]
) -> Iterator[Line]:
    """Yield every target with our value of it; layers of the targets begin at 1."""
    loss = lens["cross_entropy"].isel({d: 0 for d in lens["cross_entropy"].dims if d != "prompt"})
    value = dimension["dimension"]
    places = {int(n): i for i, n in enumerate(dimension["document"].values)}
    if "loss" in targets:
        ours = {"mean": float(loss.mean()), "std": float(loss.std())}
        yield from (Line("loss", key, None, None, x, ours[key]) for key, x in targets["loss"].items())
    yield from _layers("dimension", "mean", value.mean("prompt"), targets.get("dimension", {}))
    for kind in ("pearson", "spearman"):
        yield from _layers(kind, "log dimension and loss", correlation[kind], targets.get(kind, {}))
    for number, wanted in targets.get("documents", {}).items():
        place = places.get(int(number))
        if place is None:
            continue
        if "loss" in wanted:
            yield Line("loss", f"text {number}", None, None, wanted["loss"], float(loss[place]))
        yield from _layers("dimension", f"text {number}", value.isel(prompt=place), wanted.get("dimension", {}))


def _layers(what: str, where: str, ours: xr.DataArray, targets: Mapping[str, Sequence[float]]) -> Iterator[Line]:
    for scale, row in targets.items():
        for layer, target in enumerate(row, start=1):
            known = int(scale) in ours["scale"].values and layer in ours["layer"].values
            value = float(ours.sel(scale=int(scale), layer=layer)) if known else np.nan
            yield Line(what, where, int(scale), layer, float(target), value)


def as_dataset(lines: Sequence[Line], attrs: Mapping[str, Any]) -> xr.Dataset:
    """Return the comparison as labelled data, one ``target`` after the other."""
    v = variable
    data = {
        "published": v("target", np.array([x.target for x in lines]), "published value", "1"),
        "value": v("target", np.array([x.value for x in lines]), "our value", "1"),
        "difference": v("target", np.array([x.difference for x in lines]), "our value less the published one", "1"),
    }
    coords = {
        "target": v("target", np.arange(len(lines)), "number of the target", "1"),
        "quantity": v("target", np.array([x.what for x in lines]), "quantity", "1"),
        "of": v("target", np.array([x.where for x in lines]), "mean over prompts, or which text", "1"),
        "target_scale": v("target", np.array([x.scale or -1 for x in lines]), "n2 of GRIDE, -1 for none", "1"),
        "target_layer": v("target", np.array([x.layer or -1 for x in lines]), "blocks applied, -1 for none", "1"),
    }
    return xr.Dataset(data, coords, {**attrs, "measurement": "reproduction", "parameters": "{}"})


def table(tree: xr.DataTree, tolerance: float = 0.05) -> str:
    """Return the comparison as text, one line per number; ``*`` marks a difference above the tolerance."""
    if "comparison" not in tree.children:
        return f"{tree.attrs['model']}: no target is known for this model"
    ds = tree["comparison"].to_dataset()
    out = [f"{'quantity':<10} {'of':<23} {'n2':>3} {'layer':>5} {'target':>8} {'value':>8} {'difference':>10}"]
    for i in range(ds.sizes["target"]):
        one = ds.isel(target=i)
        scale, layer = (str(int(one[n])) if one[n] >= 0 else "" for n in ("target_scale", "target_layer"))
        target, value, difference = (float(one[n]) for n in ("published", "value", "difference"))
        mark = " *" if not abs(difference) <= tolerance else ""
        out.append(
            f"{one['quantity'].item():<10} {one['of'].item():<23} {scale:>3} {layer:>5} {target:8.3f} {value:8.3f} "
            f"{difference:+10.3f}{mark}"
        )
    off = np.abs(ds["difference"].values)
    missing = int(np.isnan(off).sum())
    largest = "none measured" if missing == len(off) else f"largest difference {np.nanmax(off):.3f}"
    out.append(
        f"{int((off <= tolerance).sum())} of {len(off)} within {tolerance:g}, {missing} not measured, {largest}; "
        f"{tree.attrs['n_prompts']} prompts"
    )
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.reproduction", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", default=MODEL, help=f"hub name: {', '.join(read_targets())}")
    parser.add_argument("--tokenizers", nargs="*", default=pile.TOKENIZERS, help="every text is long under all of them")
    parser.add_argument("--documents", help="only these texts of pile-10k, for example 0,3218")
    parser.add_argument("--device")
    parser.add_argument("--small", action="store_true", help="the bundled model and texts, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.small:
        tree = run(small=True, out=args.out)
    else:
        model = ti.load_model(args.model, dtype="float32", device=args.device)
        texts = pile.read_pile()
        if args.documents:
            kept = [int(n) for n in args.documents.split(",")]
        else:
            kept = pile.long_in_all(texts, [*args.tokenizers, model]).tolist()
            if note := pile.difference_from_authors(kept):
                print(f"note: {note}")
        name = args.model.rsplit("/", 1)[-1]
        targets = read_targets().get(args.model, {})
        if args.documents:  # means over other prompts have no target
            targets = {n: x for n, x in targets.items() if n == "documents"}
        chosen = [texts[i] for i in kept]
        tree = run(model, chosen, documents=kept, targets=targets, out=args.out.with_stem(f"{args.out.stem}_{name}"))
    print(table(tree))


if __name__ == "__main__":
    main()
