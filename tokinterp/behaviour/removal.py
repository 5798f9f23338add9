"""What deleting words from a text does to the words that are left, and to answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..lens.lens import LogitLens
from ..models.steady import steady
from ..results.dataset import variable
from ..results.profiles import mcnemar
from ..results.stamp import stamped
from ..run.engine import measure
from ..settings import checked, count, function, instance, mapping, one_of, several
from ..settings.describe import digest
from ..text.prompts import Prompts
from ..text.removal import CONDITIONS, Judge, Removal, can_match, remove, remove_random
from ..text.words import trimmed
from .choices import Item, multiple_choice

if TYPE_CHECKING:
    from ..models.base import Model

CONDITION = one_of(*CONDITIONS) | function


@checked(removals=several(instance("Removal"), 1))
@steady
def surviving_loss(
    model: Model, removals: Sequence[Removal], *, max_tokens: int | None = None, progress: bool = False
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
    progress : bool
        Show a bar.

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
    if not len(removals):
        raise ValueError("no removals to compare: the list is empty")
    limit = min(max_tokens or model.info.max_tokens, model.info.max_tokens)
    whole = _unit_losses(model, [r.original for r in removals], [r.units for r in removals], limit, progress)
    cut = _unit_losses(model, [r.text for r in removals], [r.places for r in removals], limit, progress)
    n, rows = len(removals), np.full((7, len(removals)), np.nan)
    for i, (r, a, b) in enumerate(zip(removals, whole, cut, strict=True)):
        both = np.isfinite(a) & np.isfinite(b) & ~r.removed
        reach = np.flatnonzero(both)
        gone = int(r.removed[: reach[-1] + 1].sum()) if len(reach) else 0  # those before the last unit compared
        rows[4:, i] = both.sum(), gone, r.rate
        if len(reach):
            change = b[both] - a[both]
            rows[:4, i] = a[both].mean(), b[both].mean(), change.mean(), change.sum() / gone if gone else np.nan
    v = variable
    data = {
        name: v("prompt", row.astype(int) if name.startswith("n_") else row, text, units)
        for row, (name, (text, units)) in zip(rows, LOSSES.items(), strict=True)
    }
    coords = {"prompt": v("prompt", np.arange(n), "number of the text", "1")}
    settings = {"max_tokens": limit, "removals": list(removals)}
    mark = digest([[r.original, r.text] for r in removals])
    return stamped(xr.Dataset(data, coords), "surviving_loss", model, mark, settings)


LOSSES = {
    "loss_original": ("mean cross-entropy of the surviving units in the whole text", "nat"),
    "loss_removed": ("mean cross-entropy of the surviving units after the deletion", "nat"),
    "difference": ("rise of the mean cross-entropy of the surviving units", "nat"),
    "difference_per_removed": ("summed rise of the cross-entropy over deleted units", "nat"),
    "n_surviving": ("units compared", "1"),
    "n_removed": ("units deleted before the last one compared", "1"),
    "removal_rate": ("share of the units of the text that was deleted", "1"),
}


def _unit_losses(
    model: Model, texts: Sequence[str], units: Sequence[np.ndarray], limit: int, progress: bool
) -> list[np.ndarray]:
    """Return of each text the (unit,) summed cross-entropy of the tokens of each unit; NaN where not all are known."""
    out = [np.full(len(u), np.nan) for u in units]
    full = [i for i, t in enumerate(texts) if t.strip()]
    if not full:
        return out
    prompts = Prompts.from_texts([texts[i] for i in full], model, max_tokens=limit)
    if max(prompts.lengths) < 2:
        return out
    asked = {"lens": LogitLens(layers=[model.info.n_layers], top=0, tokens=None)}
    lens = measure(model, prompts, asked, progress=progress).children["lens"].to_dataset(inherit=False)
    loss = lens["token_cross_entropy"].isel(layer=0, variant=0).values
    number = lens["token_prompt"].values
    for p, i in enumerate(full):
        known = np.concatenate([[np.nan], loss[number == p][:-1]])  # of the token itself, not of the next
        start, _, blank = trimmed(prompts.text(p), prompts.offsets(p))
        start = start + int(prompts.chars[p, 0])
        edges = units[i]
        live = np.flatnonzero(edges[:, 0] >= 0)
        if not len(live) or len(known) != len(start):
            continue
        place = np.searchsorted(edges[live, 0], start, side="right") - 1
        inside = (place >= 0) & ~blank
        inside[inside] &= start[inside] < edges[live[place[inside]], 1]
        following = np.searchsorted(edges[live, 0], start)  # white space of its own counts for the unit after it
        space = blank & ~prompts.special(p) & (following < len(live))
        own, place = inside | space, np.where(space, following, place)
        total, tokens = np.zeros(len(live)), np.zeros(len(live))
        np.add.at(total, place[own], known[own])
        np.add.at(tokens, place[own], 1)
        whole = edges[live, 1] <= int(prompts.chars[p, 1])
        out[i][live] = np.where((tokens > 0) & whole, total, np.nan)
    return out


@checked(items=several(instance("Item"), 1), conditions=mapping(CONDITION) | several(CONDITION, 1), controls=count(1))
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
    if not named:
        raise ValueError("conditions={}: give at least one")

    def correct(edit: Callable[[str], str] | None) -> tuple[np.ndarray, xr.Dataset]:
        found = multiple_choice(model, items, edit=edit, edit_options=edit_options, **options)
        return found["correct"].values, found

    before, first = correct(None)
    columns: dict[str, list[Any]] = {name: [] for name in TABLE}
    answers = []
    for what in named.values():
        gone = total = 0
        for item in items:
            one = remove(item.question, what)
            gone, total = gone + int(one.removed.sum()), total + len(one.removed)
        after, _ = correct(lambda text, what=what: remove(text, what).text)

        def control(within: str, k: int, what: str | Judge = what) -> np.ndarray:
            def edit(text: str) -> str:
                first = remove(text, what)
                if within == "class" and not can_match(first):
                    return text
                return remove_random(first, _seed(text, seed + k), within).text

            return correct(edit)[0]

        matched = np.array(
            [all(can_match(remove(t, what)) for t in (i.question, *(i.options if edit_options else ()))) for i in items]
        )
        random = [control("any", k) for k in range(controls)]
        same = [control("class", k) for k in range(controls)] if matched.any() else [np.full(len(before), np.nan)]
        same = [np.where(matched, s, np.nan) for s in same]
        ok = np.isfinite(before) & np.isfinite(after)
        pairs = [(before, ok), (random[0], ok & np.isfinite(random[0])), (same[0], ok & np.isfinite(same[0]))]
        row = (
            _mean(after), np.mean([_mean(r) for r in random]), np.mean([_mean(s) for s in same]),
            int(np.isfinite(same[0]).sum()), gone / total if total else np.nan,
            *(mcnemar(other[o] > 0, after[o] > 0)["p"] if o.any() else np.nan for other, o in pairs),
        )  # fmt: skip
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
        answers.append(after)
    v = variable
    data = {name: v("variant", columns[name], *text) for name, text in TABLE.items()}
    data["correct"] = v(("variant", "prompt"), np.array(answers), "whether the choice is right", "1")
    data["correct_original"] = v("prompt", before, "whether the choice is right on the whole question", "1")
    names = np.array(list(named), dtype=object)
    coords = {"variant": v("variant", names, "what is deleted", "1"), "prompt": first["prompt"]}
    out = xr.Dataset(data, coords, {"accuracy_original": float(np.nanmean(before))})
    settings = {"conditions": list(named.items()), "controls": controls, "edit_options": edit_options, **options}
    return stamped(out, "removal_accuracy", model, str(first.attrs["prompts"]), settings, seed, of=[first])


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
