"""Token and concept induction heads: whether heads look at, and copy, the next token or a whole entity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack, cast

import numpy as np
import torch
import xarray as xr

from ...models.steady import steady
from ...models.untrained import untrained as without_training
from ...results.dataset import block_coords, bound_coord, variable
from ...results.documents import interval_name
from ...results.stamp import stamped
from ...run.conditions import Condition, Runs, compared
from ...run.edits import replace
from ...run.measurement import choose_blocks
from ...run.sites import Site
from ...run.stream import capture
from ...run.walk import Walk, Walker, walked
from ...settings import checked, count, flag, instance, one_of
from ...stats.resample import mean_interval
from ..mass import AttentionMass
from .copies import LENGTH, SIZES, Copies, copy_prompts

if TYPE_CHECKING:
    from ...models.base import Model
    from ...models.hooks import HookedLM
    from ...run.batch import Batch
    from ...text.prompts import Prompts
    from ...text.spans import Spans

FEUCHT = "Feucht, Todd, Wallace and Bau 2025, arXiv 2504.03022"
ENTITIES, RANDOM = "entities", "random tokens"
EACH = ("condition", "key_set", "block", "head")
COPIED = ("condition", "target", "block", "head")
HEAD = ("block", "head")
TARGETS = ("first", "second")


@checked(spans=instance("Spans"), n=count(2), norm=one_of("values", "written"), untrained=flag)
@steady
def induction_scores(
    model: Model, prompts: Prompts, spans: Spans, *, n: int = 256, norm: str = "values", untrained: bool = False,
    length: int = LENGTH, sizes: Sequence[int] = SIZES, seed: int = 0, **run: Unpack[Runs],
) -> xr.Dataset:  # fmt: skip
    """Ask of every head whether it looks at the next token of what is repeated, or at the end of the entity.

    Parameters
    ----------
    model : Model
        One whose attention weights and values can be seen.
    prompts, spans
        Of which prompts are made: see `copy_prompts`.
    n : int
        Prompts of each kind; 2048 in the paper.
    norm : {"values", "written"}
        By which attention is weighted: the norm of a value (the authors' code), or of what the head writes of it.
    untrained : bool
        Whether the same network without training is measured too.
    length, sizes, seed
        See `copy_prompts`.
    **run
        ``batch_tokens``, ``store``, ...: see `tokinterp.run.conditions.Runs`.

    Returns
    -------
    xarray.Dataset
        By block and head: ``token_score``, the weighted attention of the last token to the next one where random tokens
        are repeated; ``concept_score``, to the last token of the entity where entities are.  Each with ``_interval``
        over prompts and ``_null``, where what is repeated is shuffled.  ``attention`` has all of it by ``condition``
        and ``key_set``, with ``attention_interval`` and ``chance``, that of equal weights.

    Notes
    -----
    One forward pass for each prompt of each condition; four conditions, six with ``untrained``.  In the authors' code
    for Pythia the axes of the values are mixed up before their norm is taken, so that the published scores of Pythia
    are weighted by other numbers.

    References
    ----------
    Feucht, Todd, Wallace and Bau 2025, arXiv 2504.03022, section 3; github.com/sfeucht/dual-route-induction.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> texts = ti.Prompts.from_texts([t.text for t in ti.bundled_texts("story")], model, max_tokens=128)
    >>> ds = ti.attention.induction_scores(model, texts, ti.Spans.words(texts), n=4, sizes=[2])
    >>> ds["concept_score"].dims
    ('block', 'head')
    """
    drawn = {"n": n, "length": length, "sizes": sizes, "seed": seed}
    made = {name: copy_prompts(model, prompts, spans, random=name == RANDOM, **drawn) for name in (ENTITIES, RANDOM)}
    conditions = {name: Condition(c.repeated) for name, c in made.items()}
    conditions |= {f"{name}, shuffled": Condition(c.shuffled) for name, c in made.items()}
    if untrained:
        blank = without_training(cast("HookedLM", model))
        conditions |= {f"{name}, untrained": Condition(c.repeated, model=blank) for name, c in made.items()}
    weighted = True if norm == "written" else "values"
    keys = {"next": "next", "end": "end"}
    asked = {"mass": AttentionMass(keys, {"last": "last"}, value_weighted=weighted)}
    found = compared(model, conditions, asked, **run)
    if found is None:
        return xr.Dataset()
    mass = found["mass"].isel(query_set=0)
    values = mass["valued_mass"].transpose("prompt", "condition", "key_set", "block", "head").values
    mean, interval = np.nanmean(values, 0), mean_interval(values, seed=seed)
    chance = mass["chance"].mean("prompt").transpose("condition", "key_set").values
    what = "attention of the last token, weighted by the norm of values"
    over = interval_name(what, 0.95, "prompts", len(values))
    data = {
        "token_score": variable(HEAD, mean[1, 0], "value-weighted attention to the next of repeated random tokens",
                                "1", FEUCHT, short="token induction", range=(0, 1)),
        "concept_score": variable(HEAD, mean[0, 1], "value-weighted attention to the last token of the entity", "1",
                                  FEUCHT, short="concept induction", range=(0, 1)),
        "attention": variable(EACH, mean, what, "1", FEUCHT, range=(0, 1), chance="chance"),
        "attention_interval": variable(("bound", *EACH), interval, over, "1"),
        "chance": variable(EACH[:2], chance, "share of the visible positions", "1"),
    }  # fmt: skip
    for name, (row, key) in {"token_score": (1, 0), "concept_score": (0, 1)}.items():
        shown = data[name].attrs["long_name"]
        data[f"{name}_interval"] = variable(("bound", *HEAD), interval[:, row, key], f"{over} ({shown})", "1")
        data[f"{name}_null"] = variable(HEAD, mean[row + 2, key], f"{shown}, shuffled", "1", range=(0, 1))
    coords = {
        "condition": variable("condition", np.array(list(conditions)), "what is repeated", "1"),
        "key_set": variable("key_set", np.array(list(keys)), "token of the entity that is looked at", "1"),
        **_coords(model, mass["block"].values, "pattern"),
    }
    settings = {"spans": spans, "n": n, "norm": norm, "untrained": untrained, "length": length, "sizes": list(sizes)}
    attrs = {"first": "token_score, concept_score", "dimensions": "key_set"}
    return stamped(xr.Dataset(data, coords, attrs), "induction_scores", model, prompts, settings, seed)


@checked(spans=instance("Spans"), n=count(2), control=flag)
@steady
def copying_scores(
    model: Model, prompts: Prompts, spans: Spans, *, n: int = 64, blocks: Sequence[int] | None = None,
    control: bool = True, length: int = LENGTH, sizes: Sequence[int] = SIZES, seed: int = 0, **walk: Unpack[Walk],
) -> xr.Dataset:  # fmt: skip
    """Ask of every head whether it makes the model copy: what it writes before the entity is put into another prompt.

    The clean prompt has the entity in it, the corrupted one as many other tokens; both end with the tokens before the
    entity and its first one.  What one head writes at the last but one position of the clean prompt is put there in the
    corrupted one, and the probabilities of the first token of the entity there, and of the second at the end, are
    compared with those of the corrupted prompt as it is.

    Parameters
    ----------
    model : Model
        One whose attention weights and values can be seen.
    prompts, spans, length, sizes, seed
        See `copy_prompts`.
    n : int
        Prompts of each kind; 1024 in the paper.
    blocks : sequence of int, optional
        All by default.
    control : bool
        Whether what the head writes in the clean prompt of *another* entity is put in, too: ``_null``.
    **walk
        ``batch_tokens``, ``store``, ``checkpoint_every``, ``progress``: see `tokinterp.run.walk.Walk`.

    Returns
    -------
    xarray.Dataset
        By block and head: ``token_copying``, the change of the probability of the first of random tokens;
        ``concept_copying``, that of the second token of an entity.  Each with ``_interval`` over prompts and ``_null``.
        ``copying``, ``copying_interval`` and ``copying_null`` have all of it by ``condition`` (entities, random tokens)
        and ``target`` (first, second token); ``prob_clean`` and ``prob_corrupted`` are the probabilities themselves.

    Raises
    ------
    ValueError
        If what the heads of a block mix does not give what attention adds to the stream.

    Notes
    -----
    Two forward passes for each prompt and one for each of its heads, twice as many with ``control``: with 32 blocks of
    32 heads, 64 prompts of each kind take 262,400 passes of about 60 tokens.  The authors' scripts put the ids 1 and
    13, BOS and new line of Llama 2, into the prompts of all models; here they are the model's own.

    References
    ----------
    Feucht, Todd, Wallace and Bau 2025, arXiv 2504.03022, section 2; github.com/sfeucht/dual-route-induction.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> texts = ti.Prompts.from_texts([t.text for t in ti.bundled_texts("story")], model, max_tokens=128)
    >>> ds = ti.attention.copying_scores(model, texts, ti.Spans.words(texts), n=2, sizes=[2], blocks=[3])
    >>> ds["token_copying"].dims
    ('block', 'head')
    """
    chosen = choose_blocks(blocks, model.info)
    drawn = {"n": n, "length": length, "sizes": sizes, "seed": seed}
    made = {name: copy_prompts(model, prompts, spans, random=name == RANDOM, **drawn) for name in (ENTITIES, RANDOM)}
    if control and len(made[ENTITIES].entities) < 2:
        raise ValueError("spans: a single entity has no other one for its control: give more spans, or control=False")
    model.check([Site(name, b) for b in chosen for name in ("value", "pattern", "attn_out")])

    def make(walker: Walker) -> xr.Dataset:
        found = [_patched(walker, model, c, chosen, control) for c in made.values()]
        change = np.stack([f["patched"] - f["corrupted"][:, None, None, None] for f in found], 1)
        mean, over = np.nanmean(change, 0), interval_name("change of the probability", 0.95, "prompts", len(change))
        mean = np.moveaxis(mean, (3, 4), (0, 2))  # (donor, condition, target, block, head)
        spread = np.moveaxis(mean_interval(change[..., 0, :], seed=seed), 4, 2)
        what = "change of the probability of a token of the entity by what a head writes in the clean prompt"
        data = {
            "copying": variable(COPIED, mean[0], what, "1", FEUCHT, short="change of probability"),
            "copying_interval": variable(("bound", *COPIED), spread, over, "1"),
        }
        for state in ("clean", "corrupted"):
            prob = np.stack([np.nanmean(f[state], 0) for f in found])
            text = f"probability of the token in {state} prompts"
            data[f"prob_{state}"] = variable(COPIED[:2], prob, text, "1", range=(0, 1))
        if control:
            data["copying_null"] = variable(COPIED, mean[1], f"{what} of another entity", "1")
        names = {"token_copying": (1, 0, "the first of random tokens"), "concept_copying": (0, 1, "the second token")}
        for name, (row, target, of) in names.items():
            text = f"change of the probability of {of} by what a head writes in the clean prompt"
            data[name] = variable(HEAD, mean[0, row, target], text, "1", FEUCHT, short=name.replace("_", " "))
            data[f"{name}_interval"] = variable(("bound", *HEAD), spread[:, row, target], f"{over} ({text})", "1")
            if control:
                data[f"{name}_null"] = variable(HEAD, mean[1, row, target], f"{text} of another entity", "1")
        coords = {
            "condition": variable("condition", np.array([*made]), "what is copied", "1"),
            "target": variable("target", np.array(TARGETS), "token of the entity", "1"),
            **_coords(model, chosen, "attn_out"),
        }
        return xr.Dataset(data, coords, {"first": "token_copying, concept_copying", "dimensions": "target"})

    settings = {"spans": spans, "blocks": chosen, "control": control, **drawn, "sizes": list(sizes)}
    return walked("copying_scores", model, prompts, settings, make, seed, **walk)


def _coords(model: Model, blocks: Any, site: str) -> dict[str, Any]:
    return {
        "bound": bound_coord(),
        "head": variable("head", np.arange(model.info.n_heads), "attention head", "1"),
        **block_coords([int(b) for b in blocks], model.info, site),
    }


def _patched(walker: Walker, model: Model, made: Copies, blocks: Sequence[int], control: bool) -> dict[str, np.ndarray]:
    """Return (prompt, target) probabilities, ``patched`` (prompt, block, head, donor, target)."""
    last = Site("resid", model.info.n_layers)
    inside = [Site(name, b) for b in blocks for name in ("value", "pattern")]
    goal = torch.tensor([e[:2] for e in made.entities], dtype=torch.int64, device=model.device)

    def clean(batch: Batch) -> dict[str, torch.Tensor]:
        mixed = torch.stack([_mixed(batch, b) for b in blocks], 1)
        return {"mixed": mixed, "prob": _probs(model, batch.resid(last.at), batch, goal[batch.numbers])}

    whole = walker.rows(made.clean, [last, *inside], clean)
    donor = torch.from_numpy(whole["mixed"]).to(model.device)
    shifts = (0, 1) if control else (0,)

    def corrupted(batch: Batch) -> dict[str, torch.Tensor]:
        want, out = goal[batch.numbers], []
        for i, b in enumerate(blocks):
            own = _mixed(batch, b)
            _check_wrote(model, b, own, batch)
            given = torch.stack([donor[(batch.prompt_numbers + s) % len(donor), i] for s in shifts])
            out.append(_swept(made.corrupted, batch, b, own, given, want))
        return {"patched": torch.stack(out, 1), "prob": _probs(model, batch.resid(last.at), batch, want)}

    outs = [Site("attn_out", b) for b in blocks]
    found = walker.rows(made.corrupted, [last, *inside, *outs], corrupted)
    return {"clean": whole["prob"], "corrupted": found["prob"], "patched": found["patched"]}


def _mixed(batch: Batch, block: int) -> torch.Tensor:
    """Return (prompt, head, d_value) float32 what each head mixed at the last but one position."""
    weights, value = (batch.activations[Site(name, block)].float() for name in ("pattern", "value"))
    shape = cast("HookedLM", batch.model).attention.shapes[block]
    by_head = value.unflatten(2, (shape.n_values, -1)).transpose(1, 2)
    by_head = by_head.repeat_interleave(shape.n_heads // shape.n_values, 1)
    place = batch.mask.sum(1) - 2
    row = weights[torch.arange(len(batch), device=batch.device, dtype=torch.int64), :, place]
    return (row[:, :, None] @ by_head)[:, :, 0]


def _probs(model: Model, resid: torch.Tensor, batch: Batch, goal: torch.Tensor) -> torch.Tensor:
    """Return (..., target) float64 probabilities of the two tokens at the last two positions, (..., prompt, n, d)."""
    ends = (batch.mask.sum(1) - 2)[:, None] + torch.arange(2, device=batch.device, dtype=torch.int64)
    index = ends[..., None].expand(*resid.shape[:-2], 2, resid.shape[-1])
    logits = model.unembed(resid.gather(-2, index))
    return logits.double().softmax(-1).gather(-1, goal[..., None].expand(*resid.shape[:-2], 2, 1))[..., 0]


def _check_wrote(model: Model, block: int, mixed: torch.Tensor, batch: Batch) -> None:
    place = (batch.mask.sum(1) - 2)[:, None, None]
    out = batch.activations[Site("attn_out", block)].float()
    out = out.gather(1, place.expand(-1, 1, out.shape[-1]))[:, 0]
    again = cast("HookedLM", model).attention.wrote(block, mixed.flatten(1)).float().to(out.device)
    apart = float((again - out).norm(dim=-1).div(out.norm(dim=-1).clamp_min(1e-6)).max())
    if apart > max(5 * cast("HookedLM", model).tolerance, 1e-3):
        raise ValueError(
            f"block {block} of {model.info.architecture}: what its heads mix gives another output than its attention "
            f"adds to the stream, by {apart:.2g}: no head of it can be put into another prompt; leave the block out"
        )


def _swept(
    prompts: Prompts, batch: Batch, block: int, own: torch.Tensor, given: torch.Tensor, goal: torch.Tensor
) -> torch.Tensor:
    """Return (prompt, head, donor, target) probabilities with each head in turn as it is in each donor."""
    model, (donors, n, heads, _) = cast("HookedLM", batch.model), given.shape
    last, out = Site("resid", model.info.n_layers), []
    step = max(1, ROWS.get(batch.device.type, 2**17) // batch.ids.numel())
    cases = [(d, h) for h in range(heads) for d in range(donors)]
    for start in range(0, len(cases), step):
        part = cases[start : start + step]
        mixed = torch.stack([own] * len(part))
        for i, (d, h) in enumerate(part):
            mixed[i, :, h] = given[d, :, h]
        wrote = model.attention.wrote(block, mixed.flatten(2)).flatten(0, 1)[:, None]
        edit = replace(Site("attn_out", block), wrote, slice(-2, -1))
        resid = capture(model, prompts, batch.numbers * len(part), [last], [edit]).resid(last.at)
        out.append(_probs(model, resid.unflatten(0, (len(part), n)), batch, goal))
    return torch.cat(out).unflatten(0, (heads, donors)).permute(2, 0, 1, 3)


ROWS = {"cpu": 2**14}
"""Padded tokens run at once, by kind of device; 2**17 elsewhere."""
