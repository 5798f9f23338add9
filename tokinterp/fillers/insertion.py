"""What inserting fillers does to answers: accuracy, log-probability, divergence, by kind, place and number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import xarray as xr

from ..behaviour.answers import AnswerStates, differences
from ..behaviour.scoring import Answers
from ..kernels.state import neutral
from ..models.steady import steady
from ..results.dataset import bound_coord, variable
from ..results.documents import interval_name
from ..results.profiles import mcnemar
from ..results.stamp import derived, finish
from ..run.conditions import Condition, measure_conditions
from ..settings import checked, count, names, several, string
from ..stats.resample import mean_interval
from ..stats.tests import sign_test, spearman
from ..text.items import PLACEMENTS, build_items
from .asked import AskingRuns, asked_questions, parted, settings_of
from .results import NAMES, QUANTITIES, numbers

if TYPE_CHECKING:
    from ..models.base import Model

GRID = (0, 2, 4, 10, 20, 50, 100)
ANNOUNCE = "Dots follow.\n"
_QUANTITIES = ("log_prob", "correct", "rank", *QUANTITIES)


@checked(n_fillers=several(count(), 1), kinds=several(string, 1) | string, placements=names(*PLACEMENTS, least=1))
@steady
def insert(
    model: Model,
    questions: Iterable[Any] | None = None,
    *,
    n_fillers: Sequence[int] = GRID,
    kinds: Sequence[str] = ("dots", "words"),
    placements: Sequence[str] = ("post", "pre"),
    announce: str = ANNOUNCE,
    **asked: Unpack[AskingRuns],
) -> xr.Dataset:
    """Insert fillers and compare every answer with that to the same item without.

    Parameters
    ----------
    model : Model
        Any loaded model.
    questions : iterable of Question or (prompt, answer), optional
        The bundled cloze questions by default.
    n_fillers : sequence of int
        Grid of k, in tokens; 0 is always added.
    kinds : sequence of str
        See `build_items`. Random words are the control of equal token count, so keep ``"words"`` among them.
    placements : sequence of str
        ``"post"`` and ``"pre"``: before the question is the control that shows what more tokens do by themselves.
    announce : str
        Text that announces fillers where none come, with whatever separates it from the question; empty for none.
    **asked
        ``cue``, ``exact``, ``seed``, ``demonstrations``, ``batch_tokens``, ``store``: see
        `tokinterp.fillers.asked.AskingRuns`.

    Returns
    -------
    xarray.Dataset
        Per item (``prompt``), ``filler``, ``placement`` and ``n_fillers``: log_prob, correct, rank, kl, js, flip and
        entropy_change against k = 0; and the same of the announced items under names with ``announced_``. `ti.summary`
        gives means with intervals over items, `insertion_tests` the tests.

    Raises
    ------
    ValueError
        See `build_items`; all conditions are built before anything is run.

    Examples
    --------
    >>> import tokinterp as ti
    >>> ds = insert(ti.load_model(), [("The capital of France is", " Paris")], n_fillers=[4], kinds=["dots", "words"])
    >>> float(ds["kl"].sel(n_fillers=0).max())
    0.0
    """
    grid = sorted({0, *(int(k) for k in n_fillers)})
    how, run = parted(asked, demonstrations=(), batch_tokens=4096)
    questions = asked_questions(questions)
    base = build_items(model, questions, **how)
    made = [
        (i, j, k, build_items(model, questions, n_fillers=size, kind=kind, placement=place, **how))
        for i, kind in enumerate(kinds) for j, place in enumerate(placements) for k, size in enumerate(grid) if size
    ]  # fmt: skip
    told = build_items(model, questions, announce=announce, **how) if announce else None
    conditions = {"without": Condition(base.answered)}
    conditions |= {f"kind {i}, placement {j}, {grid[k]}": Condition(items.answered) for i, j, k, items in made}
    if told is not None:
        conditions["announced"] = Condition(told.answered)
    log_prob, scores, change = answered(model, conditions, base.answers, **run)

    def values(name: str) -> dict[str, np.ndarray]:
        return {"log_prob": log_prob[name], **scores[name], **change(name, "without")}

    found = {q: np.zeros((len(base), len(kinds), len(placements), len(grid))) for q in _QUANTITIES}
    for q, v in values("without").items():
        found[q][:] = v[:, None, None, None]
    for i, j, k, _ in made:
        for q, v in values(f"kind {i}, placement {j}, {grid[k]}").items():
            found[q][:, i, j, k] = v
    alone = values("announced") if told is not None else {}
    dims = ("prompt", "filler", "placement", "n_fillers")
    data = {q: variable(dims, v, *NAMES[q]) for q, v in found.items()}
    if told is not None:
        data |= {
            f"announced_{q}": variable("prompt", v, f"{NAMES[q][0]}, fillers announced but none there", NAMES[q][1])
            for q, v in alone.items()
        }
    coords = {
        "prompt": numbers(len(base)),
        "filler": variable("filler", np.array(list(kinds)), "kind of filler", "1"),
        "placement": variable("placement", np.array(list(placements)), "after or before the question", "1"),
        "n_fillers": variable("n_fillers", np.array(grid), "filler tokens", "token"),
    }
    own = {"n_fillers": grid, "kinds": list(kinds), "placements": list(placements), "announce": announce}
    return finish(xr.Dataset(data, coords), model, "insert", settings_of(questions, how, **own), how["seed"])


def answered(
    model: Model, conditions: dict[str, Condition], answers: Sequence[np.ndarray], *, batch_tokens: int,
    store: str | Path | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]], Callable[..., dict[str, np.ndarray]]]:  # fmt: skip
    """Let items be answered under conditions; items that are not finite under all of them are NaN.

    Returns
    -------
    log_prob : dict of str to numpy.ndarray
        (item,) log-probability of the answer, by condition.
    scores : dict of str to dict
        ``correct`` and ``rank`` by condition.
    change : callable
        Of two conditions, and (item,) token ids: how the predictions where the answer begins differ.
    """
    ids = [a.tolist() for a in answers]
    asked = {"answers": Answers(ids), "end": AnswerStates([len(a) for a in ids])}
    run = measure_conditions(model, conditions, asked, store=store, batch_tokens=batch_tokens, progress=False)
    scored, end = (run.children[n].to_dataset(inherit=False).reindex(prompt=np.arange(len(ids))) for n in asked)
    states = {name: end["state"].sel(condition=name).values for name in conditions}
    by = {name: scored.sel(condition=name) for name in conditions}
    scores = {name: {q: ds[q].values.astype(float) for q in ("correct", "rank")} for name, ds in by.items()}

    def change(name: str, minus: str, tokens: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return differences(model, states[name], states[minus], tokens)

    return {name: ds["log_prob"].values for name, ds in by.items()}, scores, change


@checked()
@neutral()
def insertion_tests(ds: xr.Dataset, *, level: float = 0.95, n_boot: int = 2000, seed: int = 0) -> xr.Dataset:
    """Test what `insert` found, item by item against k = 0.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of `insert`; items that are not finite (NaN) are left out, ``n_groups`` counts the others.
    level, n_boot, seed
        Of the paired bootstrap over items, see `tokinterp.stats.resample`; no interval of fewer than 3.

    Returns
    -------
    xarray.Dataset
        By ``filler``, ``placement`` and ``n_fillers``: accuracy_change with interval, helped, hurt and McNemar's exact
        p; log_prob_change with interval and sign test p, mean reciprocal rank. ``placement_specificity``
        with interval by filler and k, ``type_variance`` of the accuracy change over kinds of equal token count,
        ``half_k``, the smallest k that reaches half of the largest log_prob_change, NaN where that is not above 0, and
        ``monotonicity``, Spearman's correlation of k and mean change; ``announced_*``, of the announcement.

    Raises
    ------
    ValueError
        If no item is finite.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, questions = ti.load_model(), ti.bundled_questions("cloze")[:6]
    >>> found = ti.fillers.insert(model, questions, n_fillers=[2], kinds=["dots"])
    >>> tests = ti.fillers.insertion_tests(found, n_boot=50)
    >>> "log_prob_change" in tests
    True
    """
    given, known = ds, np.isfinite(ds["log_prob"].values).all((1, 2, 3))
    if not known.any():
        raise ValueError("ds: no item is finite under all conditions: there is nothing to test")
    ds = ds.isel(prompt=known)
    logp, share = ds["log_prob"].values, ds["correct"].values
    right = share == 1  # a tie is a part of a right answer in the accuracy, and none in the tests of single items
    grid = ds["n_fillers"].values
    change = logp - logp[..., :1]
    gain = share - share[..., :1]
    draw = {"level": level, "n_boot": n_boot, "seed": seed}
    shape, n = change.shape[1:], len(change)

    def named(what: str) -> str:
        return interval_name(what, level, "items", n)

    tests = np.full((4, *shape), np.nan)
    for place in np.ndindex(*shape):
        pair = mcnemar(right[(slice(None), *place[:2], 0)], right[(slice(None), *place)])
        helped, hurt = pair["only_second"], pair["only_first"]
        tests[:3, *place] = helped, hurt, pair["p"] if helped + hurt else np.nan
        tests[3, *place] = sign_test(change[(slice(None), *place)])
    dims = ("filler", "placement", "n_fillers")
    both = ("bound", *dims)
    data: dict[str, Any] = {
        "accuracy": variable(dims, share.mean(0), "share of items answered correctly", "1"),
        "accuracy_change": variable(dims, gain.mean(0), "change of accuracy", "1", chance=0),
        "accuracy_change_interval": variable(both, mean_interval(gain, **draw), named("change of accuracy"), "1"),
        "helped": variable(dims, tests[0], "items wrong without and right with fillers", "1"),
        "hurt": variable(dims, tests[1], "items right without and wrong with fillers", "1"),
        "mcnemar_p": variable(dims, tests[2], "McNemar's exact two-sided p; NaN where no answer changed", "1"),
        "log_prob_change": variable(
            dims, change.mean(0), "change of the log-probability of the answer", "nat",
            short="change of log p(answer)", chance=0,
        ),
        "log_prob_change_interval": variable(
            both, mean_interval(change, **draw), named("change of the log-probability"), "nat"
        ),
        "sign_p": variable(dims, tests[3], "exact two-sided p of the sign test; NaN where nothing changed", "1"),
        "reciprocal_rank": variable(dims, (1 / (1 + ds["rank"].values)).mean(0), "mean reciprocal rank", "1"),
    }  # fmt: skip
    places = ds["placement"].values.tolist()
    if {"post", "pre"} <= set(places):
        special = change[:, :, places.index("post")] - change[:, :, places.index("pre")]
        by = ("filler", "n_fillers")
        data["placement_specificity"] = variable(
            by, special.mean(0), "change after minus before the question", "nat", chance=0,
        )  # fmt: skip
        data["placement_specificity_interval"] = variable(
            ("bound", *by), mean_interval(special, **draw), named("placement specificity"), "nat"
        )
    if ds.sizes["filler"] > 1:
        data["type_variance"] = variable(
            dims[1:], gain.mean(0).var(0, ddof=1), "variance of the accuracy change over kinds of filler", "1"
        )
    mean = change.mean(0)
    half, trend = np.full(shape[:2], np.nan), np.full(shape[:2], np.nan)
    for place in np.ndindex(*shape[:2]):
        curve = mean[place]
        if curve.max() > 0:
            half[place] = grid[np.argmax(curve >= curve.max() / 2)]
        trend[place] = spearman(grid, curve)
    data["half_k"] = variable(dims[:2], half, "fillers at half of the largest gain of these items", "token")
    data["monotonicity"] = variable(dims[:2], trend, "rank correlation of k and the change of log-probability", "1")
    if "announced_log_prob" in ds:
        told = ds["announced_log_prob"].values - logp[:, 0, 0, 0]
        data["announced_change"] = variable((), told.mean(), "change of log-probability by the announcement", "nat")
        data["announced_change_interval"] = variable(
            "bound", mean_interval(told, **draw), named("change by the announcement"), "nat"
        )
    coords = {c: ds[c].variable for c in dims}
    return derived(
        xr.Dataset(data, {**coords, "bound": bound_coord()}, {"n_groups": n, "groups": "items"}), "insertion_tests",
        [given],
        {"level": level, "n_boot": n_boot}, seed,
    )  # fmt: skip
