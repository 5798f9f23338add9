"""What augmented readings of prompts say about a layer, and models compared through their pooled states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import torch
import xarray as xr

from ..models.steady import steady
from ..results.dataset import bound_coord, check, layer_coords, variable
from ..results.stamp import stamped
from ..run.measurement import choose_layers
from ..settings import checked, count, level, names, one_of, positive, short
from ..stats.jackknife import jackknife_interval, left_out
from ..text.augment import augment_prompts
from ..text.prompts import Prompts
from .kernels import entropy
from .kernels import similarity as sim
from .pooled import PooledStates
from .similarity import TEXTS

if TYPE_CHECKING:
    from ..models.base import Model

METRICS = ("infonce", "lidar", "dime")


class Estimates(TypedDict, total=False):
    """How the metrics of augmented readings are computed.

    Attributes
    ----------
    temperature : float
        Of InfoNCE, 0.1 by default.
    delta : float
        Regularisation of LiDAR, 1e-4 by default.
    draws : int
        Random pairings of DiME, 10 by default.
    batch_tokens, progress
        See `measure`.
    """

    temperature: float
    delta: float
    draws: int
    batch_tokens: int | None
    progress: bool


@checked(
    metrics=names(*METRICS, least=1),
    q=count(2),
    rate=level,
    kind=one_of("delete", "replace", "swap"),
    pooling=one_of("mean", "last"),
    temperature=positive,
    delta=positive,
    draws=count(1),
    published=names("skean2025"),
    groups=one_of(0) | count(2),
)
@steady
def augmentation_metrics(
    model: Model,
    prompts: Prompts | Sequence[str],
    *,
    layers: Iterable[int] | None = None,
    metrics: Sequence[str] = METRICS,
    q: int = 4,
    rate: float = 0.1,
    kind: str = "delete",
    pooling: str = "mean",
    published: Sequence[str] = (),
    groups: int = 20,
    level: float = 0.95,
    seed: int = 0,
    **how: Unpack[Estimates],
) -> xr.Dataset:
    """Measure how well each layer tells prompts apart, and how little it minds edits of their tokens.

    The model reads every prompt q times, each time with other tokens edited (`tokinterp.text.augment_prompts`).

    Parameters
    ----------
    model, prompts
        What to run, and on what; texts are tokenised.
    layers : iterable of int, optional
        All by default.
    metrics : sequence of str
        ``"infonce"``: mean over pairs of readings of the InfoNCE loss of cosines.  ``"lidar"``: effective rank of the
        scatter between prompts against that within them.  ``"dime"``: gain in joint matrix entropy when the readings of
        different prompts are paired, mean over pairs of readings.
    q, rate, kind
        Readings (at least 2), share of edited tokens, and edit.
    pooling : str
        ``"mean"`` or ``"last"``, see `PooledStates`.
    published : sequence of str
        ``"skean2025"`` adds ``lidar_skean2025``: of the means of the centred unit rows of each prompt, see
        `PooledStates` and `tokinterp.geometry.kernels.entropy.lidar`.
    groups : int
        Least number of groups of prompts that are left out in turn for the intervals (see Notes), each of which costs
        as much as the value itself; with fewer prompts each is left out alone.  0 for no intervals.
    level : float
        Of the intervals.
    seed : int
        Of edits, pairings and groups.
    **how
        ``temperature``, ``delta``, ``draws``, ``batch_tokens``, ``progress``: see `Estimates`.

    Returns
    -------
    xarray.Dataset
        On ``layer``: ``infonce_loss`` and ``infonce_bound`` (log n - loss, nat), ``infonce_share`` (1 - loss / log n),
        ``lidar`` (1 to min(n - 1, d)) and ``lidar_share`` (over that maximum), ``dime`` (nat); each with an
        ``_interval`` (bound, layer).

    Raises
    ------
    ValueError
        For fewer than 2 readings or 4 prompts, unknown names, one group, a level not between 0 and 1.

    Notes
    -----
    All three grow with the number of prompts: compare layers and models on the same ones.

    The intervals are jackknife ones (`tokinterp.stats.jackknife`), for the expected value at as many prompts.  A
    bootstrap would be wrong: a prompt drawn twice is its own negative for InfoNCE, a row that adds no direction for
    LiDAR and no entropy for DiME, and draws with replacement hold only 63 % of the prompts, so that all three leave the
    measured value behind.  Left out are prompts with all their readings; DiME keeps its pairings, each prompt left out
    being replaced by its own partner.

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = [t.text[:100] for t in ti.bundled_texts("story")[:6]]
    >>> ds = ti.geometry.augmentation_metrics(ti.load_model(), texts, q=2, layers=[1, 4], progress=False)
    >>> bool((ds["infonce_share"] <= 1).all())
    True
    """
    from ..run.engine import measure

    asked, extra = tuple(metrics), tuple(published)
    run = {"batch_tokens": how.get("batch_tokens"), "progress": how.get("progress", True)}
    temperature, delta, draws = how.get("temperature", 0.1), how.get("delta", 1e-4), how.get("draws", 10)
    chosen = choose_layers(layers, model.info)
    if not isinstance(prompts, Prompts):
        prompts = Prompts.from_texts(prompts, model)
    if len(prompts) < 4:
        raise ValueError(f"{len(prompts)} prompts: at least 4 are told apart here")
    found, released = [], []
    for reading in augment_prompts(prompts, q, rate, kind, seed):
        ask = {"pooled": PooledStates(chosen, pooling)}
        if extra:
            ask["released"] = PooledStates(chosen, "mean", exclude=(), centred_unit=True)
        read = measure(model, reading, ask, **run)
        found.append(read["pooled"].to_dataset())
        if extra:
            released.append(read["released"].to_dataset())
    numbers = sorted(set.intersection(*(set(f["prompt"].values.tolist()) for f in found)))
    stacked = [np.stack([f["state"].sel(prompt=numbers).values for f in s]) for s in (found, released) if s]
    states, *theirs = (torch.from_numpy(s).to(model.device) for s in stacked)
    finite = torch.stack([s.isfinite().all((0, 2, 3)) for s in (states, *theirs)]).all(0)
    states, theirs = states[:, finite], [s[:, finite] for s in theirs]
    n = states.shape[1]
    if n < 4:
        raise ValueError(f"{n} prompts have finite states in every reading: at least 4 are told apart here")
    orders = np.stack([np.random.default_rng([seed, r]).permutation(n) for r in range(draws)])
    whole, parts, removed = [], [], left_out(n, groups, seed) if groups else np.empty((0, 0), np.int64)
    for i in range(len(chosen)):
        x = states[:, :, i].double()
        whole.append(reading_numbers(x, orders, asked, temperature, delta))
        parts.append([reading_numbers(*without(x, orders, out), asked, temperature, delta) for out in removed])
        if theirs and "lidar" in asked:
            y = theirs[0][:, :, i].double()
            for row, z in ((whole[-1], y), *zip(parts[-1], (without(y, orders, o)[0] for o in removed), strict=True)):
                row["lidar_skean2025"] = float(entropy.lidar(z.transpose(0, 1), delta, "skean2025"))
    data: dict[str, xr.Variable] = {}
    for name in whole[0]:
        values = np.array([row[name] for row in whole])
        data[name] = variable("layer", values, *LABELS[name])
        if groups:
            others = np.array([[one[name] for one in row] for row in parts]).T
            bounds = jackknife_interval(values, others, removed.shape[1], n, level)
            text = f"{level:.0%} jackknife interval of the {LABELS[name][0]}"
            data[f"{name}_interval"] = variable(("bound", "layer"), bounds, text, LABELS[name][1])
    data["n_prompts"] = variable((), n, "prompts that take part", "1")
    parameters: dict[str, Any] = {
        "layers": chosen, "metrics": asked, "q": q, "rate": rate, "kind": kind, "pooling": pooling,
        "temperature": temperature, "delta": delta, "draws": draws, "published": extra,
        "groups": groups, "level": level,
    }  # fmt: skip
    coords = layer_coords(chosen, model.info)
    if groups:
        coords["bound"] = bound_coord()
    ds = stamped(xr.Dataset(data, coords), "augmentation_metrics", model, prompts, parameters, seed, of=found)
    check(ds)
    return ds


def without(x: torch.Tensor, orders: np.ndarray, out: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Return readings (reading, prompt, channel) and pairings (draw, prompt) without some prompts.

    Whose partner goes gets the partner of that partner: pairings drawn uniformly stay so.

    Examples
    --------
    >>> x, orders = without(torch.zeros(2, 4, 3), np.array([[2, 0, 3, 1]]), np.array([2]))
    >>> x.shape[1], orders.tolist()  # 0 -> 2 -> 3 becomes 0 -> 3, the third that is left
    (3, [[2, 0, 1]])
    """
    n = orders.shape[1]
    stays = np.ones(n, dtype=bool)
    stays[out] = False
    kept = np.flatnonzero(stays)
    partner = orders[:, kept]
    while not stays[partner].all():
        partner = np.where(stays[partner], partner, np.take_along_axis(orders, partner, 1))
    return x[:, torch.from_numpy(kept).to(x.device)], (np.cumsum(stays) - 1)[partner]


def reading_numbers(
    x: torch.Tensor, orders: np.ndarray, metrics: Sequence[str], temperature: float, delta: float
) -> dict[str, float]:  # fmt: skip
    """Return the numbers of one layer from readings (reading, prompt, channel) and pairings (draw, prompt)."""
    n, d = x.shape[1:]
    out: dict[str, float] = {}
    pairs = list(combinations(range(len(x)), 2))
    if "infonce" in metrics:
        loss = float(torch.stack([entropy.infonce(x[a], x[b], temperature) for a, b in pairs]).mean())
        out.update(infonce_loss=loss, infonce_bound=np.log(n) - loss, infonce_share=1 - loss / np.log(n))
    if "lidar" in metrics:
        each = x.transpose(0, 1)
        out["lidar"] = float(entropy.lidar(each, delta))
        out["lidar_share"] = out["lidar"] / min(n - 1, d)
    if "dime" in metrics:
        grams = [entropy.cosine_gram(v) for v in x]
        drawn = torch.from_numpy(orders).to(x.device)
        out["dime"] = float(torch.stack([entropy.dime(grams[a], grams[b], drawn) for a, b in pairs]).mean())
    return out


@checked(measures=names(*sim.MEASURES, least=1), pooling=one_of("mean", "last"), k=count(1))
@steady
def compare_models(
    one: Model,
    two: Model,
    texts: Sequence[str],
    *,
    layers: Iterable[int] | None = None,
    other_layers: Iterable[int] | None = None,
    measures: Sequence[str] = ("cka", "procrustes", "rsa", "neighbours"),
    pooling: str = "mean",
    k: int = 10,
    max_tokens: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Compare every layer of one model with every layer of another through one pooled row for each text.

    Tokenizers and widths may differ: a text is one row in both.

    Parameters
    ----------
    one, two : Model
        The models; ``layer`` is of the first, ``other_layer`` of the second.
    texts : sequence of str
        At least 8.
    layers, other_layers : iterable of int, optional
        All by default.
    measures : sequence of str
        See `LayerSimilarity`.
    pooling : str
        ``"mean"`` or ``"last"`` token of each text.
    k : int
        Neighbours of ``"neighbours"`` (10 in Huh et al. 2024, arXiv 2405.07987).
    max_tokens : int, optional
        Longest prompt, cut there; by default the context of each model, and a longer text is an error.
    progress : bool
        Show a bar.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> texts = [t.text[:100] for t in ti.bundled_texts("story")[:8]]
    >>> ds = ti.geometry.compare_models(model, model, texts, layers=[1, 4], other_layers=[4], k=3, progress=False)
    >>> round(float(ds["procrustes"].sel(layer=4, other_layer=4)), 6)
    1.0
    """
    from ..run.engine import measure

    asked = tuple(measures)
    if len(texts) < 8 or ("neighbours" in asked and len(texts) <= k):
        raise ValueError(
            f"texts={short(texts)}: {len(texts)} texts: at least 8, and more than k={k}, are needed to compare two "
            "models"
        )
    found = []
    for model, which in ((one, layers), (two, other_layers)):
        prompts = Prompts.from_texts(texts, model, max_tokens=max_tokens)
        if len(prompts) != len(texts):
            raise ValueError(
                f"{model.info.id}: {len(texts)} texts became {len(prompts)} prompts; they no longer pair up"
            )
        ask = {"pooled": PooledStates(choose_layers(which, model.info), pooling)}
        found.append(measure(model, prompts, ask, progress=progress)["pooled"].to_dataset())
    a, b = xr.align(*(f["state"].dropna("prompt") for f in found), join="inner", exclude=["layer", "channel"])
    sets = [[torch.from_numpy(s.sel(layer=n).values) for n in s["layer"].values] for s in (a, b)]
    values = sim.compare_sets(sets[0], sets[1], asked, k)
    data = {n: variable(("layer", "other_layer"), v, TEXTS[n][0], "1", TEXTS[n][1]) for n, v in values.items()}
    data["n_prompts"] = variable((), a.sizes["prompt"], "texts that take part", "1")
    other = found[1].attrs
    attrs = {f"other_{name}": other[name] for name in ("model", "weights", "revision", "n_layers", "prompts")}
    parameters = {"measures": asked, "pooling": pooling, "k": k, "max_tokens": max_tokens}
    coords = layer_coords(a["layer"].values.tolist(), one.info)
    coords["other_layer"] = variable("other_layer", b["layer"].values, f"blocks applied in {two.info.id}", "1")
    mark = str(found[0].attrs["prompts"])
    ds = stamped(xr.Dataset(data, coords, attrs), "compare_models", one, mark, parameters, of=found)
    check(ds)
    return ds


OORD = "van den Oord et al. 2018, arXiv 1807.03748"
THILAK = "Thilak et al. 2024, arXiv 2312.04000, eq. 3 to 6"
LABELS: dict[str, tuple[str, ...]] = {
    "infonce_loss": ("InfoNCE loss between readings", "nat", OORD),
    "infonce_bound": ("lower bound on the mutual information of readings", "nat", OORD),
    "infonce_share": ("InfoNCE, 1 - loss / log(prompts)", "1", "Skean et al. 2025, arXiv 2502.02013"),
    "lidar": ("LiDAR, effective rank of prompts against edits", "1", THILAK),
    "lidar_share": ("LiDAR divided by min(prompts - 1, channels)", "1", THILAK),
    "lidar_skean2025": ("LiDAR as in the code of Skean et al. 2025", "1", "Skean et al. 2025, arXiv 2502.02013"),
    "dime": ("DiME, entropy gained by pairing readings at random", "nat", "Skean et al. 2023, arXiv 2301.08164"),
}
