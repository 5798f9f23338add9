"""Guided decoding: of the most probable next tokens the one that leads a text towards a concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
import xarray as xr
from torch.nn.functional import pad

from ..models.steady import steady
from ..results.dataset import bound_coord, variable
from ..results.documents import groups_of_prompts, interval_name
from ..run.decoding import decode_guided
from ..run.sites import resid
from ..run.walk import Walk, Walker, walked
from ..settings import checked, count, level, mapping, none, refuse, some_strings, string
from ..stats.resample import mean_interval
from ..text.prompts import Prompts
from .concept_scores import check_pairs, concept_frames, concept_ids, n_columns, project
from .frames import FRAMES

if TYPE_CHECKING:
    from ..models.base import Model
    from ..run.batch import Batch

GUIDES = ("greedy", "concept", "other concept", "random frame")


@checked(
    concepts=mapping(some_strings, 2), guide=string, minus=string | none, n_tokens=count(1), k=count(2),
    max_tokens=count(1), level=level,
)  # fmt: skip
@steady
def guided_decoding(
    model: Model,
    prompts: Prompts | Sequence[str],
    concepts: Mapping[str, Sequence[str]],
    guide: str,
    *,
    minus: str | None = None,
    n_tokens: int = 16,
    k: int = 3,
    max_tokens: int = 3,
    level: float = 0.95,
    seed: int = 0,
    **walk: Unpack[Walk],
) -> xr.Dataset:
    """Continue prompts so that they lie along a concept, and say what that does and costs beside three controls.

    At each step each of the ``k`` most probable tokens is tried, and that one is kept whose text has the largest sum of
    projections on the concept (see `ConceptScores`).

    Parameters
    ----------
    model : Model
        With its tokenizer.
    prompts : Prompts or sequence of str
        What is continued.
    concepts : mapping of str to sequence of str
        Words of each concept; two or more.
    guide : str
        The concept that is followed.
    minus : str, optional
        A concept that it is followed away from: the frame is that of the difference.
    n_tokens : int
        Tokens decoded.
    k : int
        Candidates of each step (2 in the published code).
    max_tokens : int
        Longer words are left out.
    level : float
        Of the intervals, over documents.
    seed : int
        Of the random frame.
    **walk
        ``batch_tokens``, ``store``, ``checkpoint_every``, ``progress``: see `tokinterp.run.walk.Walk`.

    Returns
    -------
    xarray.Dataset
        By ``guide``: "concept", and as controls "greedy" (the most probable token), "other concept" (the next one of
        ``concepts``) and "random frame" (orthonormal as the concept's, with as many columns).  With ``prompt``:
        ``score``, mean projection of the decoded part on the concept, and ``cross_entropy`` of the decoded tokens.
        ``gain`` in score over "greedy", mean over prompts, with ``gain_interval``; ``cost``, the same in cross-entropy,
        with ``cost_interval``; ``token`` (step; -1 where logits are NaN) and ``text``.

    Raises
    ------
    ValueError
        For a guide that is none of the concepts, a concept without a word, prompts too long to be continued.

    Notes
    -----
    Each step runs k sequences a prompt, whole: with the three controls 3 k + 1 for each decoded token and a few more.
    Unlike the published code nothing is tokenised again, and special tokens of the prompt take no part in scores; it
    does not stop at an end of text, either.

    References
    ----------
    github.com/phvv-me/frame-representation-hypothesis.

    Examples
    --------
    >>> import tokinterp as ti
    >>> words = {"water": [" river", " sea", " lake"], "war": [" army", " battle", " war"]}
    >>> ds = guided_decoding(ti.load_model(), ["He went to the"], words, "water", n_tokens=2)
    >>> ds["token"].dims
    ('guide', 'prompt', 'step')
    """
    prompts = prompts if isinstance(prompts, Prompts) else Prompts.from_texts(prompts, model, progress=False)
    if guide not in concepts:
        refuse("guide", guide, f"give one of the concepts {', '.join(concepts)}")
    pairs = [] if minus is None else [(guide, minus)]
    check_pairs(concepts, pairs)
    if k > model.info.d_vocab:
        refuse("k", k, f"{model.info.id} has {model.info.d_vocab} tokens")
    if (longest := max(prompts.lengths)) + n_tokens > model.info.max_tokens:
        refuse("n_tokens", n_tokens, f"the longest prompt has {longest} tokens, and {model.info.id} a context of "
               f"{model.info.max_tokens}")  # fmt: skip
    ids = concept_ids(model.tokenizer, concepts, max_tokens)
    names = list(ids)
    after = [*names[names.index(guide) + 1 :], *names[: names.index(guide)]]
    other = next((n for n in after if n != minus), after[0])
    settings = {"concepts": {n: list(w) for n, w in concepts.items()}, "guide": guide, "minus": minus,
                "n_tokens": n_tokens, "k": k, "max_tokens": max_tokens, "level": level}  # fmt: skip

    def make(walker: Walker) -> xr.Dataset:
        found = concept_frames(model, ids, pairs, seed)
        wanted = found.frames[-1 if pairs else names.index(guide)]
        size = int(n_columns(wanted[None]))
        frames = {"concept": wanted, "other concept": found.frames[names.index(other)],
                  "random frame": found.random[0, :size]}  # fmt: skip

        def of_batch(batch: Batch) -> dict[str, torch.Tensor]:
            parts: dict[str, list[torch.Tensor]] = {"token": [], "logprob": [], "score": []}
            lengths = batch.mask.sum(1)
            for name in GUIDES:
                along = frames.get(name, wanted)

                def score(states: torch.Tensor, mask: torch.Tensor, along: torch.Tensor = along) -> torch.Tensor:
                    special = pad(batch.special, (0, mask.shape[1] - batch.special.shape[1]))
                    keep = mask & ~special.repeat_interleave(len(mask) // len(special), 0)
                    return (project(states, keep, along[None])[..., 0] * keep).sum(1)

                out = decode_guided(model, batch.ids, batch.mask, n_tokens, 1 if name == "greedy" else k, score)
                place = torch.arange(out.states.shape[1], device=batch.device, dtype=torch.int64)
                after = (place >= lengths[:, None]) & (place < lengths[:, None] + n_tokens)
                parts["token"].append(out.ids)
                parts["logprob"].append(out.logprob.double())
                parts["score"].append((project(out.states, after, wanted[None])[..., 0] * after).sum(1) / n_tokens)
            return {n: torch.stack(v, 1) for n, v in parts.items()}

        rows = walker.rows(prompts, resid([0]), of_batch)
        return _labelled(rows, prompts, level, other).assign_attrs(guide=guide, minus=minus or "", other=other)

    return walked("guided_decoding", model, prompts, settings, make, seed, **walk)


def _labelled(rows: dict[str, np.ndarray], prompts: Prompts, level: float, other: str) -> xr.Dataset:
    token = rows["token"].transpose(1, 0, 2)
    score, loss = rows["score"].T, -rows["logprob"].mean(2).T
    text = [["".join(prompts.vocabulary.strings(t[t >= 0])) for t in of] for of in token]
    group, groups = groups_of_prompts(prompts, np.arange(len(prompts)))
    n, v = len(np.unique(group)), variable
    change = {"gain": score - score[0], "cost": loss - loss[0]}
    said = {"gain": "gain in projection over greedy decoding", "cost": "gain in cross-entropy over greedy decoding"}
    data: dict[str, Any] = {
        "score": v(("guide", "prompt"), score, "mean projection of what is decoded on the concept", "1", FRAMES,
                   short="projection on the concept", chance=0),
        "cross_entropy": v(("guide", "prompt"), loss, "mean cross-entropy of what is decoded", "nat", range=(0, None)),
    }  # fmt: skip
    for name, values in change.items():
        units = "1" if name == "gain" else "nat"
        data[name] = v("guide", np.nanmean(values, 1), said[name], units, chance=0)
        bounds = mean_interval(values.T, group, level=level)
        data[f"{name}_interval"] = v(("bound", "guide"), bounds, interval_name(said[name], level, groups, n), units)
    data |= {
        "token": v(("guide", "prompt", "step"), token, "token decoded", "1"),
        "text": v(("guide", "prompt"), np.array(text, object), "what is decoded", "1"),
    }
    coords = {
        "guide": v("guide", np.array(GUIDES), "what the choice of tokens follows", "1"),
        "prompt": v("prompt", np.arange(len(prompts)), "number of the prompt in the input", "1"),
        "step": v("step", np.arange(token.shape[2]), "token decoded, 0 first", "1"),
        "bound": bound_coord(),
    }
    return xr.Dataset(data, coords, {"dimensions": "guide, step", "first": "gain, cost, score, cross_entropy"})
