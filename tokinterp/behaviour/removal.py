"""What deleting words from a text does to the words that are left, and to answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import xarray as xr

from ..models.steady import steady
from ..results.dataset import variable
from ..results.profiles import mcnemar
from ..results.stamp import stamped
from ..run.conditions import Condition, Runs, compared
from ..settings import checked, count, function, instance, mapping, one_of, several
from ..settings.describe import digest
from ..text.marks import mark
from ..text.prompts import Prompts
from ..text.removal import CONDITIONS, Judge, Removal, can_match, remove, remove_random
from ..text.words import trimmed
from .choices import Item, edited, multiple_choice
from .loss import TokenLoss

if TYPE_CHECKING:
    from ..models.base import Model

CONDITION = one_of(*CONDITIONS) | function


@checked(removals=several(instance("Removal"), 1), max_tokens=count(1))
@steady
def surviving_loss(
    model: Model, removals: Sequence[Removal], *, max_tokens: int | None = None, **run: Unpack[Runs]
) -> xr.Dataset:
    """Compare the loss of the words and signs that are left with their loss in the whole text.

    Parameters
    ----------
    model : Model
        What predicts.
    removals : sequence of Removal
        Of one text each: `tokinterp.text.remove`, `remove_random`.
    max_tokens : int, optional
        Texts are cut off there; only units that both versions predict are compared.
    **run
        ``batch_tokens``, ``store``, ``share``, ...: see `tokinterp.run.conditions.Runs`.

    Returns
    -------
    xarray.Dataset
        Per prompt: ``loss_original`` and ``loss_removed`` (mean over surviving units of the sum of the
        cross-entropies of their tokens, nat), ``difference`` (removed minus original), ``difference_per_removed`` (the
        summed difference over the number of deleted units), ``n_surviving``, ``n_removed``, ``removal_rate``. NaN where
        nothing survives.

    Notes
    -----
    The loss of a unit is that of its tokens, whatever their number, because deletions change how words are tokenised.
    A token that holds parts of two units counts for the first, one of white space alone for the unit after it.

    Examples
    --------
    >>> import tokinterp as ti
    >>> from tokinterp.text import removal
    >>> texts = [t.text for t in ti.bundled_texts("story")[:3]]
    >>> ds = ti.behaviour.surviving_loss(ti.load_model(), [removal.remove(t, "articles") for t in texts], max_tokens=64)
    >>> bool((ds["n_removed"] > 0).all())
    True
    """
    limit = min(max_tokens or model.info.max_tokens, model.info.max_tokens)
    n, rows = len(removals), np.full((7, len(removals)), np.nan)
    rows[4:] = [[0] * n, [0] * n, [r.rate for r in removals]]
    live = [i for i, r in enumerate(removals) if r.original.strip() and r.text.strip()]
    if live:
        some = [removals[i] for i in live]
        sides = {
            "original": ([r.original for r in some], [r.units for r in some]),
            "removed": ([r.text for r in some], [r.places for r in some]),
        }
        made = {k: Prompts.from_texts(t, model, max_tokens=limit, progress=False) for k, (t, _) in sides.items()}
        owner = {k: [unit_of_tokens(made[k], p, u) for p, u in enumerate(units)] for k, (_, units) in sides.items()}
        both = [
            _whole(a, len(r.units)) & _whole(b, len(r.units)) & ~r.removed
            for r, a, b in zip(some, owner["original"], owner["removed"], strict=True)
        ]
        marked = {
            k: mark(made[k], unit=np.concatenate([(o >= 0) & u[o] for o, u in zip(owner[k], both, strict=True)]))
            for k in sides
        }
        asked = {"loss": TokenLoss("unit")}
        found = compared(model, {k: Condition(p) for k, p in marked.items()}, asked, **run)
        if found is None:
            return xr.Dataset()
        total = (found["loss"]["loss"] * found["loss"]["n_tokens"]).transpose("condition", "prompt").values
        for i, units, (before, after) in zip(live, both, total.T, strict=True):
            k = int(units.sum())
            if not k or not np.isfinite([before, after]).all():
                continue
            gone = int(removals[i].removed[: np.flatnonzero(units)[-1] + 1].sum())  # those before the last one compared
            change = after - before
            rows[:6, i] = before / k, after / k, change / k, change / gone if gone else np.nan, k, gone
    v = variable
    data = {
        name: v("prompt", row.astype(int) if name.startswith("n_") else row, text, units)
        for row, (name, (text, units)) in zip(rows, LOSSES.items(), strict=True)
    }
    coords = {"prompt": v("prompt", np.arange(n), "number of the text", "1")}
    settings = {"max_tokens": limit, "removals": list(removals)}
    texts = digest([[r.original, r.text] for r in removals])
    return stamped(xr.Dataset(data, coords), "surviving_loss", model, texts, settings)


LOSSES = {
    "loss_original": ("mean cross-entropy of the surviving units in the whole text", "nat"),
    "loss_removed": ("mean cross-entropy of the surviving units after the deletion", "nat"),
    "difference": ("rise of the mean cross-entropy of the surviving units", "nat"),
    "difference_per_removed": ("summed rise of the cross-entropy over deleted units", "nat"),
    "n_surviving": ("units compared", "1"),
    "n_removed": ("units deleted before the last one compared", "1"),
    "removal_rate": ("share of the units of the text that was deleted", "1"),
}


def unit_of_tokens(prompts: Prompts, p: int, units: np.ndarray) -> np.ndarray:
    """Return (token,) the unit that each token of a prompt counts for, -1 for none; a unit that is cut off has none.

    Parameters
    ----------
    prompts : Prompts
        Made from texts.
    p : int
        Number of the prompt.
    units : numpy.ndarray
        (unit, 2) characters of the text; -1 for a unit that is not there.
    """
    start, _, blank = trimmed(prompts.text(p), prompts.offsets(p))
    start = start + int(prompts.chars[p, 0])
    out = np.full(len(start), -1)
    live = np.flatnonzero(units[:, 0] >= 0)
    if not len(live):
        return out
    place = np.searchsorted(units[live, 0], start, side="right") - 1
    inside = (place >= 0) & ~blank
    inside[inside] &= start[inside] < units[live[place[inside]], 1]
    following = np.searchsorted(units[live, 0], start)  # white space of its own counts for the unit after it
    space = blank & ~prompts.special(p) & (following < len(live))
    place, own = np.where(space, following, place), inside | space
    own[own] &= units[live[place[own]], 1] <= int(prompts.chars[p, 1])
    out[own] = live[place[own]]
    return out


def _whole(owner: np.ndarray, n: int) -> np.ndarray:
    """Return (unit,) whether all tokens of a unit are predicted: it has some, and not the first of the prompt."""
    known = np.isin(np.arange(n), owner)
    known[owner[:1][owner[:1] >= 0]] = False
    return known


@checked(
    items=several(instance("Item"), 1),
    conditions=mapping(CONDITION, 1) | several(CONDITION, 1),
    controls=count(1),
)
@steady
def removal_accuracy(
    model: Model,
    items: Sequence[Item],
    conditions: Mapping[str, str | Judge] | Sequence[str],
    *,
    controls: int = 1,
    seed: int = 0,
    edit_options: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Answer multiple-choice items before and after deletions, each beside random deletions at the same rate.

    Parameters
    ----------
    model, items
        See `multiple_choice`.
    conditions : sequence of str, or mapping of name -> condition or judge
        See `tokinterp.text.remove`.
    controls : int
        Random deletions of as many units, for each condition; and as many that delete within the same classes.
    seed : int
        Of these.
    edit_options : bool
        Whether options are edited too (the paper does not say).
    **options
        Of `multiple_choice`.

    Returns
    -------
    xarray.Dataset
        Along ``variant`` (the conditions): ``accuracy``, ``accuracy_control`` (mean over the controls),
        ``accuracy_class_control`` (the same where as many units of each class were deleted, see `remove_random`; over
        the ``n_class_control`` items of which no class is deleted as a whole, NaN if there are none), ``removal_rate``
        (of all units of the questions), ``p``, ``p_control`` and ``p_class_control``: exact McNemar tests against the
        original and against the first control of each kind; attribute ``accuracy_original``. ``correct`` (variant,
        prompt).

    Examples
    --------
    >>> import tokinterp as ti
    >>> items = [ti.behaviour.Item("The Nile is a", ("river", "mountain"), 0)] * 2
    >>> ti.behaviour.removal_accuracy(ti.load_model(), items, ["articles"], score="option")["accuracy"].dims
    ('variant',)
    """
    named = dict(conditions) if isinstance(conditions, Mapping) else {str(c): c for c in conditions}
    edits: dict[tuple[str, ...], Callable[[str], str] | None] = {("whole",): None}
    for name, what in named.items():
        edits[name, "without"] = partial(_without, what)
        for within in ("any", "class"):
            edits |= {(name, within, str(k)): partial(_at_random, what, within, seed + k) for k in range(controls)}
    found = multiple_choice(
        model, [edited(i, edit, edit_options) for edit in edits.values() for i in items], **options
    )  # in one run: what an edit leaves alone is asked once
    correct = dict(zip(edits, found["correct"].values.reshape(len(edits), -1), strict=True))
    before = correct["whole",]
    columns: dict[str, list[Any]] = {name: [] for name in TABLE}
    answers = []
    for name, what in named.items():
        gone = [remove(item.question, what).removed for item in items]
        total = sum(map(len, gone))
        matched = np.array(
            [all(can_match(remove(t, what)) for t in (i.question, *(i.options if edit_options else ()))) for i in items]
        )
        after = correct[name, "without"]
        random, same = ([correct[name, within, str(k)] for k in range(controls)] for within in ("any", "class"))
        same = [np.where(matched, s, np.nan) for s in same]
        ok = np.isfinite(before) & np.isfinite(after)
        pairs = [(other, ok & np.isfinite(other)) for other in (before, random[0], same[0])]
        row = (
            _mean(after), np.mean([_mean(r) for r in random]), np.mean([_mean(s) for s in same]),
            int(np.isfinite(same[0]).sum()), sum(int(g.sum()) for g in gone) / total if total else np.nan,
            *(mcnemar(other[o] == 1, after[o] == 1)["p"] if o.any() else np.nan for other, o in pairs),
        )  # fmt: skip
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
        answers.append(after)
    v = variable
    data = {name: v("variant", columns[name], *text) for name, text in TABLE.items()}
    data["correct"] = v(("variant", "prompt"), np.array(answers), "whether the choice is right", "1")
    data["correct_original"] = v("prompt", before, "whether the choice is right on the whole question", "1")
    names = np.array(list(named), dtype=object)
    coords = {
        "variant": v("variant", names, "what is deleted", "1"),
        **{c: found[c].variable[: len(items)] for c in ("prompt", "subject")},
    }
    out = xr.Dataset(data, coords, {"accuracy_original": float(np.nanmean(before))})
    settings = {"conditions": list(named.items()), "controls": controls, "edit_options": edit_options, **options}
    return stamped(out, "removal_accuracy", model, str(found.attrs["prompts"]), settings, seed, of=[found])


def _without(what: str | Judge, text: str) -> str:
    return remove(text, what).text


def _at_random(what: str | Judge, within: str, seed: int, text: str) -> str:
    """Return a text without as many random units; as it is where a class would be deleted as a whole."""
    first = remove(text, what)
    return text if within == "class" and not can_match(first) else remove_random(first, _seed(text, seed), within).text


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _seed(text: str, seed: int) -> int:
    return (sum(text.encode()) * 1009 + len(text)) * 101 + seed


PAPER = "Razzhigaev et al. 2025, arXiv 2502.15007, table 1"
TABLE: dict[str, tuple[str, ...]] = {
    "accuracy": ("share of items answered correctly after the deletion", "1", PAPER),
    "accuracy_control": ("the same after random deletion of as many units", "1"),
    "accuracy_class_control": ("the same after random deletion of as many units of each class", "1"),
    "n_class_control": ("items that have such a control: no class is deleted as a whole", "1"),
    "removal_rate": ("share of the units of all questions that was deleted", "1"),
    "p": ("exact McNemar test against the whole questions", "1"),
    "p_control": ("exact McNemar test against random deletion", "1"),
    "p_class_control": ("exact McNemar test against random deletion within the classes", "1"),
}
