"""Activation patching at every layer and place: where does the difference between two prompts pass through?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from ..models.steady import steady
from ..results.dataset import block_coords, layer_coords, variable
from ..results.stamp import stamped
from ..run.edits import Patch, patch
from ..run.engine import measure
from ..run.measurement import choose_blocks, choose_layers
from ..run.measurement.fields import Field
from ..run.signals import at_once
from ..run.sites import Site
from ..settings import checked, count, one_of, several, string
from .scoring import Answers

if TYPE_CHECKING:
    from ..models.base import Model
    from ..text.prompts import Prompts

SITES = ("resid", "resid_mid", "attn_out", "mlp_out")
PAPER = "Meng et al. 2022, arXiv 2202.05262; Heimersheim and Nanda 2024, arXiv 2404.15255"
EACH = ("prompt", "layer", "position")
FIELDS = {
    "log_prob": Field(EACH, "log-probability of the answer, patched", "nat", PAPER),
    "log_prob_effect": Field(EACH, "share of the log-probability that the patch restores", "1", PAPER),
    "logit_difference": Field(EACH, "logit of the answer less that of the other, patched", "nat", PAPER),
    "logit_difference_effect": Field(EACH, "share of the logit difference that the patch restores", "1", PAPER),
}
SCORES = ("log_prob", "logit_difference")


@at_once()
@checked(
    answers=several(several(count()), 1),
    others=several(several(count()), 1),
    at=several(count(), 1),
    site=one_of(*SITES),
    spans=several(string, 1, once=True),
)
@steady
def patching_sweep(
    model: Model,
    clean: Prompts,
    corrupted: Prompts,
    answers: Sequence[Sequence[int]],
    others: Sequence[Sequence[int]] | None = None,
    *,
    at: Iterable[int] | None = None,
    site: str = "resid",
    spans: Sequence[str] | None = None,
    **run: Any,
) -> xr.Dataset:
    """Put what a clean prompt has at each layer and place into a corrupted one, and ask for the answer of the clean.

    Parameters
    ----------
    model : Model
        The model.
    clean, corrupted : Prompts
        As many of each: prompt i of one gives to prompt i of the other. Each ends where the answer begins (with all
        its tokens but the last, if it has several).
    answers : sequence of sequence of int
        Token ids of the answer to each clean prompt.
    others : sequence of sequence of int, optional
        Token ids of the answer to each corrupted prompt, of which the first counts: for the logit difference.
    at : iterable of int, optional
        Layers, or blocks of other sites than ``resid``; all by default.
    site : {"resid", "resid_mid", "attn_out", "mlp_out"}
        What is patched.
    spans : sequence of str, optional
        Names of marks (`tokinterp.text.mark`) that both have, with as many tokens in either prompt of a pair: each is
        patched as a whole. By default each position is patched, and the prompts of a pair have the same length.
    **run
        ``store``, ``batch_tokens``, ``checkpoint_every`` and ``progress`` of `measure`.

    Returns
    -------
    xarray.Dataset
        (prompt, layer or block, position or span): ``log_prob``, and with others ``logit_difference``, of the patched
        prompt; ``log_prob_effect`` and ``logit_difference_effect``, what the patch restores of the difference between
        the two prompts: 0 as corrupted, 1 as clean, NaN where the two are equal up to rounding. Per prompt
        ``log_prob_clean``, ``log_prob_corrupted`` and those of the logit difference. NaN where a prompt has no such
        place, or gives NaN or infinite activations.

    Raises
    ------
    ValueError
        Before anything is run: if the prompts are not pairs, or a span differs in length within a pair.

    References
    ----------
    Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262; Heimersheim and Nanda 2024, arXiv 2404.15255
    (the normalised effect).

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> clean = ti.Prompts.from_texts(["The capital of France is"], model)
    >>> corrupted = ti.Prompts.from_texts(["The capital of Italy is"], model)
    >>> paris, rome = (model.tokenizer(t, add_special_tokens=False)["input_ids"][:1] for t in (" Paris", " Rome"))
    >>> found = ti.behaviour.patching_sweep(model, clean, corrupted, [paris], [rome], at=[0, 4], progress=False)
    >>> found["logit_difference_effect"].dims
    ('prompt', 'layer', 'position')
    """
    chosen = (choose_layers if site == "resid" else choose_blocks)(at, model.info)
    grid = _grid(clean, corrupted, chosen, spans)
    for name, given in (("answers", answers), ("others", others)):
        if given is not None and len(given) != len(corrupted):
            raise ValueError(f"{name}: {len(given)} for {len(corrupted)} pairs of prompts: give one for each")
    sites = [Site(site, n) for n in chosen]
    patched = corrupted[grid.prompt]
    own = Answers([answers[n] for n in grid.prompt], None if others is None else [others[n] for n in grid.prompt])

    def scores(prompts: Prompts, edits: Sequence[Patch], asked: Answers, **options: Any) -> dict[str, np.ndarray]:
        tree = measure(model, prompts, {"answers": asked}, edits=edits, **options)
        return _in_order(tree["answers"].to_dataset(), len(prompts))

    quiet = {k: v for k, v in run.items() if k in ("batch_tokens", "progress")}
    whole = {
        name: scores(prompts, (), Answers(answers, others), **quiet)
        for name, prompts in (("clean", clean), ("corrupted", corrupted))
    }
    found = scores(patched, _patches(sites, grid, clean, patched, spans), own, **run)
    dims = ("prompt", "layer" if site == "resid" else "block", "position" if spans is None else "span")
    each = range(grid.shape[2]) if spans is None else np.array(spans, object)
    coords = {
        "prompt": variable("prompt", range(len(corrupted)), "number of the pair in the input", "1"),
        **(layer_coords(chosen, model.info) if site == "resid" else block_coords(chosen, model.info, site)),
        dims[2]: variable(dims[2], each, "place that is patched, BOS counted" if spans is None else "mark", "1"),
    }
    ds = xr.Dataset(_variables(found, whole, grid, dims, model.info.dtype), coords, {"patched": site})
    settings = {"clean": clean, "answers": answers, "others": others, "at": chosen, "site": site, "spans": spans}
    return stamped(ds, "patching_sweep", model, corrupted, settings)


class Grid(NamedTuple):
    """The patched prompts of a sweep: of each the pair, and the places in the lists of layers and of positions.

    Those of one layer come together, so that a batch is of few layers.
    """

    at: np.ndarray
    prompt: np.ndarray
    place: np.ndarray
    shape: tuple[int, int, int]

    def fill(self, values: np.ndarray) -> np.ndarray:
        """Return (prompt, layer, place) values, NaN where nothing was patched."""
        out = np.full(self.shape, np.nan)
        out[self.prompt, self.at, self.place] = values
        return out


def _grid(clean: Prompts, corrupted: Prompts, chosen: Sequence[int], spans: Sequence[str] | None) -> Grid:
    """Return all that is to be patched; refuse what are no pairs."""
    n, lengths = len(corrupted), np.asarray(corrupted.lengths)
    if len(clean) != n or not n:
        raise ValueError(f"corrupted: {n} prompts for {len(clean)} clean ones: give as many, at least one")
    if spans is None:
        bad = np.flatnonzero(lengths != np.asarray(clean.lengths))
        if len(bad):
            raise ValueError(
                f"corrupted: prompt {bad[0]} has {lengths[bad[0]]} tokens, the clean one {clean.lengths[bad[0]]}: give "
                "pairs of one length, or spans= with the marks of what corresponds"
            )
        there = np.arange(lengths.max()) < lengths[:, None]
    else:
        sizes = np.stack([_sizes(clean, "clean", spans), _sizes(corrupted, "corrupted", spans)])
        bad = np.argwhere(sizes[0] != sizes[1])
        if len(bad):
            i, s = bad[0]
            raise ValueError(
                f"spans: {spans[s]!r} has {sizes[1, i, s]} tokens in corrupted prompt {i}, {sizes[0, i, s]} in the "
                "clean one: mark as many in both"
            )
        there = sizes[0] > 0
    layer, prompt, place = (np.broadcast_to(there, (len(chosen), *there.shape))).nonzero()
    return Grid(layer, prompt, place, (n, len(chosen), there.shape[1]))


def _sizes(prompts: Prompts, name: str, spans: Sequence[str]) -> np.ndarray:
    """Return (prompt, span) how many tokens each span has."""
    if missing := [s for s in spans if s not in prompts.marks]:
        has = ", ".join(prompts.marks) or "none"
        raise ValueError(f"spans: {name} has no mark {missing[0]!r}, it has {has}: name its tokens with text.mark")
    counts = [np.add.reduceat(prompts.marks[s].astype(np.int64), prompts.starts[:-1]) for s in spans]
    return np.stack(counts, 1)


def _patches(
    sites: Sequence[Site], grid: Grid, clean: Prompts, patched: Prompts, spans: Sequence[str] | None
) -> list[Patch]:
    """Return the edits of a run over all patched prompts: each is about those of its layer (and span) alone."""
    lengths, out = np.asarray(patched.lengths), []
    here = patched.token_table()["position"] == np.repeat(grid.place, lengths)
    for i, site in enumerate(sites):
        for s, span in enumerate([None] if spans is None else spans):
            mine = np.flatnonzero((grid.at == i) & ((grid.place == s) | (span is None)))
            donor = dict(zip(mine.tolist(), grid.prompt[mine].tolist(), strict=True))
            if donor:
                out.append(patch(site, here if span is None else span, donor=donor, source=span, prompts=clean))
    return out


def _in_order(ds: xr.Dataset, n: int) -> dict[str, np.ndarray]:
    """Return (prompt,) scores of all prompts, NaN for those that were left out."""
    out = {name: np.full(n, np.nan) for name in SCORES if name in ds}
    for name, values in out.items():
        values[ds["prompt"].values] = ds[name].values
    return out


def _variables(
    found: dict[str, np.ndarray], whole: dict[str, dict[str, np.ndarray]], grid: Grid, dims: tuple[str, ...], dtype: str
) -> dict[str, xr.Variable]:
    """Return scores and effects, and the scores of the two prompts by themselves."""
    data, least = {}, torch.finfo(getattr(torch, dtype)).eps ** 0.5
    for name, values in found.items():
        clean, corrupted = (whole[kind][name] for kind in ("clean", "corrupted"))
        gap = clean - corrupted
        nothing = np.abs(gap) <= least * np.fmax(1, np.fmax(np.abs(clean), np.abs(corrupted)))
        gap = np.where(nothing, np.nan, gap)[grid.prompt]
        patched = {name: values, f"{name}_effect": (values - corrupted[grid.prompt]) / gap}
        for key, one in patched.items():
            field = FIELDS[key]
            data[key] = variable(dims, grid.fill(one), field.long_name, field.units, field.references)
        for kind in ("clean", "corrupted"):
            text = FIELDS[name].long_name.replace("patched", f"of the {kind} prompt")
            data[f"{name}_{kind}"] = variable("prompt", whole[kind][name], text, "nat")
    return data
