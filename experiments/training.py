"""Erasure during training: what is read from the stream at the end of words, at checkpoints of one run.

For every checkpoint token probes are fitted for all layers on the training texts and scored on the test texts: how well
the own token and the tokens before it are read at last pieces of words, at last tokens of names, and elsewhere; then
psi of words and names against random spans of their length, for every end layer; and the loss.  The first checkpoint
is an untrained network of the same shape.

A checkpoint is a revision of a model of the hub (``step1000``, as Pythia has them), a folder below the folder of the
model, or ``untrained``.  Those of a run of ``experiments.bundled`` are made with ``python -m experiments.bundled.train
export --checkpoint all``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr

import tokinterp as ti

from .parts import units as known_units
from .runner.claims import Claim, Number, Results, curve, given, mean, plain
from .runner.preset import Preset, place
from .runner.record import stage

FEWEST = 30
"""Positions or spans below which nothing is claimed."""


@dataclass
class Settings(Preset):
    """Checkpoints, texts, probes, layers of psi."""

    checkpoints: tuple[str, ...] = ("untrained", "trained")  # in the order of training; trained is the model as it is
    train: str | None = None  # file for the fit; every second bundled text without one
    test: str | None = None  # file for everything else; the other bundled texts without one
    n_train: int | None = None
    n_test: int | None = None
    n_tokens: int = 256  # longest prompts
    offsets: tuple[int, ...] = (-2, -1, 0)
    layers: tuple[int, ...] | None = None  # of the probes; all without any
    start: int = 1  # layer of psi
    products: str | None = None  # float32 or bfloat16

    def network(self, checkpoint: str) -> Any:
        """Load the network of a checkpoint."""
        if checkpoint == "untrained":
            others = [n for n in self.checkpoints if n != "untrained"]
            if not others:
                raise ValueError(
                    "checkpoints=untrained: name a trained one, too, whose shape the untrained network has"
                )
            return ti.untrained(self.network(others[-1]), seed=self.seed)
        options: Any = {"dtype": self.dtype, "device": self.device}
        name = place(self.model) if self.model else None
        if checkpoint == "trained":
            return ti.load_model(name, **options)
        if name is None:
            raise ValueError(
                f"checkpoints={checkpoint}: the bundled model has none; give model=FOLDER or a name of the hub"
            )
        folder = Path(name)
        if not folder.is_dir():
            return ti.load_model(name, revision=checkpoint, **options)
        if not (folder / checkpoint).is_dir():
            raise ValueError(f"checkpoints={checkpoint}: model={self.model} has no such folder in it")
        return ti.load_model(folder / checkpoint, **options)

    def halves(self) -> tuple[list[str], list[str]]:
        """Return the texts of the fit and those of everything else."""
        if not {"train", "test"} <= self.found.keys():
            every = [t.text for t in ti.bundled_texts()]
            for name, file, half, n in (
                ("train", self.train, every[::2], self.n_train), ("test", self.test, every[1::2], self.n_test)
            ):  # fmt: skip
                self.found[name] = (half if file is None else known_units.read_annotated(place(file))[0])[:n]
        return self.found["train"], self.found["test"]


PYTHIA = (0, 1, 8, 64, 256, 512, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 143000)
NARROW = (100, 400, 1600, 6400, 15438)
WIKIPEDIA = "$TOKINTERP_DATA/text/wikipedia_"
PRESETS = {
    "tiny": Settings(n_train=8, n_test=8, n_tokens=64, layers=(0, 1, 4, 8), offsets=(-1, 0)),
    "bundled": Settings(products="bfloat16"),
    "narrow": Settings(
        model="runs/bundled/narrow-cpu/checkpoints",
        checkpoints=("untrained", *(f"step_{n:06d}" for n in NARROW)),
        train=f"{WIKIPEDIA}train_1000.csv.xz", test=f"{WIKIPEDIA}test_500.csv.xz",
        n_tokens=128,  # as long as the sequences of the first part of the training
        start=4,  # where the token before is read best
    ),
    "paper": Settings(
        model="EleutherAI/pythia-410m", checkpoints=tuple(f"step{n}" for n in PYTHIA), products="bfloat16",
        train=f"{WIKIPEDIA}train_1000.csv.xz", test=f"{WIKIPEDIA}test_500.csv.xz",
    ),
}  # fmt: skip


def run(p: Settings, kept: Path | None = None) -> dict[str, xr.Dataset]:
    """Return ``NAME/scores``, ``NAME/loss`` and ``NAME/end_L`` (AUROC of psi with end layer L) of every checkpoint."""
    train, test = p.halves()
    names = known_units.names(test)
    units = ti.Spans.words(test) + names
    tree: dict[str, xr.Dataset] = {}
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
    for checkpoint in p.checkpoints:
        model = p.network(checkpoint)
        limit = min(p.n_tokens, model.info.max_tokens or p.n_tokens)
        fit, scored = (
            ti.Prompts.from_texts(t, model, max_tokens=limit, min_tokens=2, on_long="truncate", progress=p.progress)
            for t in (train, test)
        )
        layers = range(model.info.n_layers + 1) if p.layers is None else p.layers
        probes = ti.erasure.fit_probes(
            model, fit, layers=layers, offsets=p.offsets, store=stage(kept, f"{checkpoint}_probes"), seed=p.seed,
            products=cast(Any, p.products), progress=p.progress,
        )  # fmt: skip
        ends = [n for n in layers if n > p.start]
        asked: dict[str, Any] = {
            "scores": ti.erasure.ProbeScores(probes, names),
            "loss": ti.lens.LogitLens(top=0, tokens=0, layers=[model.info.n_layers]),
        }
        for end in ends:
            asked[f"end_{end}"] = ti.erasure.ErasureScores(
                probes, start=p.start, end=end, offsets=[o for o in p.offsets if o <= 0], tokens=None
            )
        done = ti.measure(model, scored, asked, store=stage(kept, f"{checkpoint}.zarr"), progress=p.progress)
        tree[f"{checkpoint}/scores"] = done["scores"].to_dataset()
        tree[f"{checkpoint}/loss"] = done["loss"].to_dataset()
        aligned = units.align(scored)
        for end in ends:
            psi = ti.erasure.psi_of_spans(done[f"end_{end}"].to_dataset(), scored, aligned)
            tree[f"{checkpoint}/end_{end}"] = psi.drop_dims("span")
    return tree


# -- claims ---------------------------------------------------------------------------------------------------
def checkpoints(r: Results) -> list[str]:
    """Return the checkpoints of a result, the untrained network first."""
    found = dict.fromkeys(n.partition("/")[0] for n in r if n.endswith("/scores"))
    return sorted(found, key=lambda n: (n != "untrained", n == "trained", steps(n)))


def steps(name: str) -> int:
    """Return the steps that the name of a checkpoint says; 0 for the untrained network."""
    said = re.search(r"\d+", name)
    return int(said.group()) if said else 0


def less(a: Number, b: Number) -> Number:
    """Return the difference of two networks' numbers; their errors are taken to be independent.

    Both are of the same texts, so that the interval is rather too wide than too narrow.
    """
    value = a.value - b.value
    down = np.hypot(a.value - a.low, b.high - b.value)
    up = np.hypot(a.high - a.value, b.value - b.low)
    return Number(value, value - float(down), value + float(up))


def read_out(r: Results, subset: str, offset: int) -> dict[str, Number | list[float]]:
    """Return the largest gap of the last checkpoint behind the embedding, less the untrained network's there."""
    first, *_, last = checkpoints(r)
    ds = r[f"{last}/scores"].sel(subset=subset, offset=offset)
    gap = ds["gap"].values
    if int(ds["n_positions"]) < FEWEST or not np.isfinite(gap[1:]).any():
        return {"gap, last checkpoint less untrained": plain(np.nan)}
    k = int(np.nanargmax(gap[1:])) + 1
    blank = r[f"{first}/scores"].sel(subset=subset, offset=offset)
    now = given(ds.isel(layer=k), "gap", "gap_band")
    before = given(blank.isel(layer=k), "gap", "gap_band")
    out: dict[str, Number | list[float]] = {
        f"layer {int(ds['layer'][k])}, last checkpoint less untrained": less(now, before)
    }
    out |= {"last checkpoint": now, "untrained": before}
    for name in checkpoints(r):
        out[f"{name}, gap by layer"] = curve(r[f"{name}/scores"]["gap"], subset=subset, offset=offset)
    return out


def best_layer(ds: xr.Dataset) -> int:
    """Return the place of the layer where the token before is read best at other tokens, which last pieces are not."""
    return int(ds["accuracy"].sel(subset="other", offset=-1).argmax("layer"))


def gathered(r: Results) -> dict[str, Number | list[float]]:
    """Return how much better the token before is read at last pieces, in `best_layer`, than in the first network."""
    first, *_, last = checkpoints(r)
    ds, blank = (r[f"{n}/scores"].sel(subset="last piece", offset=-1) for n in (last, first))
    k = best_layer(r[f"{last}/scores"])
    now, before = (given(one.isel(layer=k), "accuracy") for one in (ds, blank))
    out: dict[str, Number | list[float]] = {
        f"layer {int(ds['layer'][k])}, last checkpoint less untrained": less(now, before)
    }
    for name in checkpoints(r):
        out[f"{name}, by layer"] = curve(r[f"{name}/scores"]["accuracy"], subset="last piece", offset=-1)
    return out


def forgotten(r: Results) -> dict[str, Number]:
    """Return how much worse the token before is read at last pieces in the last layer than in that of `best_layer`."""
    out = {}
    for name in checkpoints(r)[::-1]:
        ds = r[f"{name}/scores"].sel(subset="last piece", offset=-1)
        best = ds.isel(layer=best_layer(r[f"{name}/scores"]))
        out[name] = less(given(best, "accuracy"), given(ds.isel(layer=-1), "accuracy"))
    return out


def marked(r: Results, subset: str) -> dict[str, Number]:
    """Return the AUROC of psi with the last layer as its end, of the last checkpoint first."""
    out: dict[str, Number] = {}
    for name in checkpoints(r)[::-1]:
        ends = sorted((n for n in r if n.startswith(f"{name}/end_")), key=steps_of_end)
        ds = r[ends[-1]]
        known = subset in ds["subset"].values and int(ds["n_spans"].sel(subset=subset)) >= FEWEST
        out[name] = given(ds, "auroc", subset=subset) if known else plain(np.nan)
    return out


def steps_of_end(name: str) -> int:
    """Return the end layer that the name of a result says."""
    return int(name.rpartition("_")[2])


def losses(r: Results) -> dict[str, Number]:
    """Return the loss of the last checkpoint less that of the first, and of each."""
    every = {n: r[f"{n}/loss"]["cross_entropy"].isel(layer=-1, variant=0) for n in checkpoints(r)}
    first, *_, last = every
    return {
        "last checkpoint less untrained": mean(every[last] - every[first]),
        **{n: mean(v) for n, v in every.items()},
    }


FEUCHT = "Feucht et al. 2024"
CLAIMS = [
    Claim("the loss falls in training", "control", "loss of a token, difference (nat)", losses, below=0),
    Claim("training gathers the token before at the last pieces of words", FEUCHT,
          "accuracy at the layer that is best at other tokens, difference", gathered, above=0),
    Claim("the token before is forgotten again before the last layer", FEUCHT,
          "accuracy at last pieces, layer that is best at other tokens less last layer", forgotten, above=0),
    *[
        Claim(f"training brings erasure of {said} at last tokens of {unit}", FEUCHT,
              "gap of other tokens less last tokens, largest of all layers, trained less untrained",
              lambda r, subset=subset, offset=offset: read_out(r, subset, offset), above=0)
        for unit, subset in (("words", "last piece"), ("names", "last of name"))
        for said, offset in (("the own token", 0), ("the token before", -1))
    ],
    *[
        Claim(f"psi up to the last layer marks {plural} after training", FEUCHT,
              "AUROC against random spans of the same length and prompt",
              lambda r, kind=kind: marked(r, kind), above=0.5)
        for kind, plural in (("word", "words"), ("name", "names"))
    ],
]  # fmt: skip
