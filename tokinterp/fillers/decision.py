"""The verdict on fillers: used or not shown, with the evidence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import xarray as xr

from ..attention.mass import AttentionMass
from ..models.steady import steady
from ..results.dataset import bound_coord, variable
from ..results.documents import interval_name
from ..results.stamp import finish
from ..run.conditions import kept
from ..run.engine import measure, run_facts, store_path
from ..settings import checked, count, short
from ..settings.describe import describe
from ..stats.resample import mean_interval
from ..stats.simultaneous import simultaneous_interval
from ..text.items import Items, _pair, build_items
from .asked import AskedRuns, asked_questions, parted, settings_of
from .insertion import insert
from .interventions import intervene

if TYPE_CHECKING:
    from ..models.base import Model

CRITERIA = (
    "placement specificity", "hidden from the answer", "hidden, against random words", "mean ablation",
    "mean ablation, against random words", "enrichment of the best head",
)  # fmt: skip


@checked(n_fillers=count(1))
@steady
def verdict(
    model: Model,
    questions: Iterable[Any] | None = None,
    *,
    n_fillers: int = 10,
    control: str = "words",
    head_questions: Iterable[Any] = (),
    level: float = 0.95,
    n_boot: int = 2000,
    **asked: Unpack[AskedRuns],
) -> xr.Dataset:
    """Decide whether a model uses fillers: it gains from them, reads them, and what it reads there is content.

    The rule (all three are needed for "used", each with the lower bound of its interval on the right side):

    1. fillers after the question raise the log-probability of the answer by more than the same fillers before it;
    2. hiding them from the answer position, or putting their mean over items in their place at all layers,
       lowers it, and by more than the same done to as many random words in the same places;
    3. some head gives them, from the answer position, more than their share of what is left beside sink and self
       (the interval holds for all heads at once, also where values are skewed: by the largest studentised distance
       over heads, see `tokinterp.stats.simultaneous.simultaneous_interval`, which says how often).

    Parameters
    ----------
    model, questions, n_fillers
        See `build_items`.
    control : str
        Another kind of filler of equal token count: the control of the second condition.
    head_questions : iterable of Question or (prompt, answer)
        Further items, read for the third condition alone: an interval that holds for all heads at once needs more of
        them (30, below which their number is paid for in full) than the other conditions, and one pass for each.
    level, n_boot
        Of the bootstrap over items.
    **asked
        ``kind``, ``cue``, ``exact``, ``seed``, ``demonstrations``, ``batch_tokens``, ``store``: see
        `tokinterp.fillers.asked.AskedRuns`.
        Of items with demonstrations, their own fillers are hidden or replaced. What the result is made of is kept in
        ``STORE.verdict`` until all is there.

    Returns
    -------
    xarray.Dataset
        By ``criterion``: ``value`` with ``value_interval``, the ``bound_wanted`` that the lower bound must exceed, and
        ``passed``. ``attrs["verdict"]`` is ``"used"`` or ``"not shown"``: a failed condition is no proof of absence.

    Examples
    --------
    >>> import tokinterp as ti
    >>> ds = verdict(ti.load_model(), ti.bundled_questions("cloze")[:8], n_fillers=4, n_boot=200)
    >>> ds.attrs["verdict"] in ("used", "not shown")
    True
    """
    how, run = parted(asked, kind="dots", demonstrations=())
    store, seed = run.pop("store", None), how["seed"]
    questions = asked_questions(questions)
    if len(questions) < 2:
        raise ValueError(
            f"questions={short(questions)}: {len(questions)} question: an interval over items needs several"
        )
    if control == how["kind"]:
        raise ValueError(f"control={short(control)}: kind and control are the same: give two kinds of filler")
    draw = {"level": level, "n_boot": n_boot, "seed": seed}
    more = list(head_questions)
    items = build_items(model, [*questions, *more], n_fillers=n_fillers, **how)
    own: dict[str, Any] = {"n_fillers": n_fillers, "control": control, "level": level, "n_boot": n_boot}
    if more:
        own["head_questions"] = [list(_pair(q)) for q in more]
    settings = {**own, **how, "questions": [list(_pair(q)) for q in questions]}
    facts = {**run_facts(model, items.prompts, {}, ()), "verdict": describe(settings), "seed": seed}

    def make(home: Path | None) -> xr.DataTree:
        ds = _decided(model, questions, items, control, (how, run), draw, home)
        ds = finish(ds, model, "verdict", settings_of(questions, how, seed=seed, **own), seed)
        return xr.DataTree(ds if home is None else ds.assign_attrs(facts=json.dumps(facts, sort_keys=True)))

    return kept(None if store is None else store_path(store), "verdict", "verdict", facts, make).to_dataset()


def _decided(
    model: Model, questions: Sequence[Any], items: Items, control: str, asked: tuple[dict[str, Any], dict[str, Any]],
    draw: dict[str, Any], home: Path | None,
) -> xr.Dataset:  # fmt: skip
    """Return the criteria; ``items`` are those of the third condition, of which the questions are the first."""
    (how, run), kind, n_fillers = asked, items.kind, items.n_fillers
    made = {k: v for k, v in how.items() if k != "kind"} | run
    files = {n: None if home is None else home / f"{n}.zarr" for n in ("insertion", "fillers", "control", "heads")}
    ds = insert(model, questions, n_fillers=[n_fillers], kinds=[kind], announce="", store=files["insertion"], **made)
    logp = ds["log_prob"].sel(n_fillers=n_fillers).isel(filler=0)
    special = (logp.sel(placement="post") - logp.sel(placement="pre")).values
    names = ("knock-out of the answer", "mean ablation")
    changes = {
        k: intervene(model, questions, n_fillers=n_fillers, kind=k, interventions=names, store=files[file], **made)[
            "log_prob_change"
        ]
        for file, k in (("control", control), ("fillers", kind))
    }
    drops = {(k, n): -c.sel(intervention=n).values for k, c in changes.items() for n in names}
    samples = [special]
    for n in names:
        samples += [drops[kind, n], drops[kind, n] - drops[control, n]]
    known = np.isfinite(samples).all(0)  # each criterion is of the same items
    if not known.any():
        raise ValueError("questions: no item is finite under all conditions: look at the weights and the dtype")
    samples = [s[known] for s in samples]
    values = [float(s.mean()) for s in samples]
    bounds = [mean_interval(s, **draw) for s in samples]
    head, value, bound = _best_head(model, items, draw, store=files["heads"], **run)
    values, bounds = [*values, value], [*bounds, bound]
    wanted = np.array([0.0] * len(samples) + [1.0])
    low = np.array([b[0] for b in bounds])
    passed = low > wanted
    used = passed[0] and ((passed[1] and passed[2]) or (passed[3] and passed[4])) and passed[5]
    one = "criterion"
    data = {
        "value": variable(
            one, values, "evidence: nat, for the head attention over chance", "nat or 1", short="evidence",
            chance="bound_wanted",
        ),
        "value_interval": variable(
            ("bound", one), np.array(bounds).T,
            interval_name("evidence", draw["level"], "items", int(known.sum())), "nat or 1",
        ),
        "bound_wanted": variable(one, wanted, "what the lower bound must exceed", "nat or 1", short="wanted"),
        "passed": variable(one, passed.astype(np.int8), "whether it does", "1"),
    }  # fmt: skip
    coords = {one: variable(one, np.array(CRITERIA), "condition", "1"), "bound": bound_coord()}
    best = "none: no interval over items" if head is None else f"block {head[0]}, head {head[1]}"
    attrs = {"verdict": "used" if used else "not shown", "best_head": best}
    attrs |= {"n_groups": int(known.sum()), "groups": "items"}
    if len(items) > len(questions):
        attrs["n_head_items"] = len(items)
    return xr.Dataset(data, coords, attrs)


def _best_head(
    model: Model, items: Items, draw: dict[str, Any], **run: Any
) -> tuple[tuple[int, int] | None, float, np.ndarray]:
    """Return the head with the largest lower bound, its enrichment net of sink and self, and its interval.

    The interval holds for all heads at once, so that choosing the best of them does not make it too narrow.
    """
    asked = AttentionMass({"fillers": items.mark("filler")}, {"answer": "last"}, value_weighted=False)
    ds = measure(model, items.prompts, {"a": asked}, progress=False, **run)["a"].to_dataset()
    each = ds["net_enrichment"].isel(query_set=0, key_set=0).transpose("prompt", "block", "head").values
    return best_head(each, **draw)


def best_head(
    each: np.ndarray, level: float = 0.95, n_boot: int = 2000, seed: int = 0
) -> tuple[tuple[int, int] | None, float, np.ndarray]:
    """Return the (block, head) of the largest lower bound, its mean over items, and its simultaneous interval.

    Parameters
    ----------
    each : numpy.ndarray
        (item, block, head).
    level, n_boot, seed
        See `tokinterp.stats.simultaneous.simultaneous_interval`.

    Examples
    --------
    >>> each = np.random.default_rng(0).normal(1.0, 0.1, (20, 2, 3)) + np.eye(2, 3)
    >>> best_head(each)[0] in [(0, 0), (1, 1)]
    True
    """
    bounds = simultaneous_interval(each, level=level, n_boot=n_boot, seed=seed)
    if np.isnan(bounds[0]).all():
        return None, np.nan, np.full(2, np.nan)
    block, head = np.unravel_index(int(np.nanargmax(bounds[0])), bounds[0].shape)
    return (int(block), int(head)), float(np.nanmean(each[:, block, head])), bounds[:, block, head]
