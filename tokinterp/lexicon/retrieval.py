"""The inner lexicon: is a word that is cut into unusual tokens, or misspelt, found again inside the model?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch
import xarray as xr

from ..models.embeddings import embeddings
from ..models.steady import steady
from ..results.dataset import layer_coords, variable
from ..run.batch import Batch
from ..run.measurement import choose_layers
from ..run.sites import resid
from ..run.stream import capture
from ..run.walk import Walk, Walker, walked
from ..settings import checked, instance, names, string
from .kernels import target_ranks
from .patchscopes import Target, first_layer, patchscope

if TYPE_CHECKING:
    from ..models.base import Model
    from .cases import Cases

VARIANTS = tuple(f"{m}, {n}, {p}" for m in ("input", "output") for n in ("raw", "normed") for p in ("dot", "cosine"))
"""Ways to read a state: with the input or the output embedding, without or with the final norm, by which product."""
PAPER = "Kaplan et al. 2025, arXiv 2410.05864"
CANONICITY = "Busigin and Pinter 2026, arXiv 2606.08562: canonicity"


@checked(variants=names(*VARIANTS, least=1))
@steady
def retrieve_words(
    model: Model,
    cases: Cases,
    layers: Iterable[int] | None = None,
    variants: Sequence[str] = VARIANTS,
    **walk: Unpack[Walk],
) -> xr.Dataset:
    """Read the last piece of split and misspelt words at every layer: is the closest embedding the word's own?

    Parameters
    ----------
    model : Model
        The model whose vocabulary the cases use.
    cases : Cases
        What `split_cases` and `typo_cases` return: words that are one token of their own.
    layers : iterable of int, optional
        All by default.
    variants : sequence of str
        Some of `VARIANTS`. The first, "input, raw, dot", is the reverse logit lens of the paper.
    **walk
        ``batch_tokens``, ``store``, ``checkpoint_every``, ``progress``: see `tokinterp.run.walk.Walk`.

    Returns
    -------
    xarray.Dataset
        (prompt, layer, variant), one prompt for each case: ``rank`` of the word's own token (0: retrieved; ties count
        against it; -1 where a state is not finite) and ``retrieved`` (NaN there); (prompt, variant): ``first_layer``,
        NaN where the word is never retrieved.

    Raises
    ------
    ValueError
        For a word of several tokens, an unknown variant, or an input embedding of another width than the stream.

    References
    ----------
    Kaplan et al. 2025, arXiv 2410.05864

    Examples
    --------
    >>> import tokinterp as ti
    >>> from tokinterp.lexicon import Lexicon, split_cases
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts([t.text for t in ti.bundled_texts("story")], model, max_tokens=256)
    >>> found = ti.lexicon.retrieve_words(model, split_cases(Lexicon.of(prompts), n_words=4), [0, 2])
    >>> found["retrieved"].dims
    ('prompt', 'layer', 'variant')
    """
    _one_token(cases)
    chosen = choose_layers(layers, model.info)
    matrices = _matrices(model, {v.split(",")[0] for v in variants})
    prompts = cases.prompts("pieces")
    target = torch.tensor([w[0] for w in cases.whole], dtype=torch.int64, device="cpu")

    def ranks_of(batch: Batch) -> dict[str, torch.Tensor]:
        wanted = target[batch.numbers].to(batch.device)
        found = torch.empty(len(batch), len(chosen), len(variants), dtype=torch.int64, device=batch.device)
        for i, state in enumerate(_last(batch, chosen).unbind(1)):
            normed = model.normed(state) if any("normed" in v for v in variants) else state
            for name, matrix in matrices.items():
                for norm, x in (("raw", state), ("normed", normed)):
                    keys = [f"{name}, {norm}, {product}" for product in ("dot", "cosine")]
                    if {*keys} & {*variants}:
                        for key, ranks in zip(keys, target_ranks(x.to(matrix.device), matrix, wanted), strict=True):
                            if key in variants:
                                found[:, i, list(variants).index(key)] = ranks
        return {"rank": found}

    def make(walker: Walker) -> xr.Dataset:
        rank = walker.rows(prompts, resid(chosen), ranks_of)["rank"]
        retrieved = rank == 0
        first = np.stack([first_layer(retrieved[:, :, k], chosen) for k in range(len(variants))], 1)
        what = "other embeddings at least as close as the word's own, -1 where not finite"
        data = {
            "rank": v(dims, rank, what, "1", PAPER, log=True),
            "retrieved": v(
                dims, np.where(rank < 0, np.nan, retrieved), "share of words retrieved", "1", PAPER,
                short="share of words retrieved", range=(0, 1),
            ),
            "first_layer": v(("prompt", "variant"), first, "first layer at which the word is retrieved", "1", PAPER),
        }  # fmt: skip
        return xr.Dataset(data, coords)

    v, dims = variable, ("prompt", "layer", "variant")
    parts = [[s.strip() for s in name.split(",")] for name in variants]
    coords = {
        "variant": v("variant", np.array(variants, object), "matrix, norm and product", "1"),
        **{
            name: v("variant", np.array([p[k] for p in parts], object), text, "1")
            for k, (name, text) in enumerate((("matrix", "embedding"), ("norm", "final norm"), ("product", "product")))
        },
        **case_coords(cases),
        **layer_coords(chosen, model.info),
    }
    settings = {"layers": chosen, "variants": list(variants), "whole": [list(w) for w in cases.whole]}
    return walked("retrieve_words", model, prompts, settings, make, **walk)


@checked()
@steady
def canonicity(model: Model, cases: Cases, layers: Iterable[int] | None = None, **walk: Unpack[Walk]) -> xr.Dataset:
    """Compare the last piece of split and misspelt words with the word itself in the same context, at every layer.

    Parameters
    ----------
    model, cases, layers, **walk
        As in `retrieve_words`.

    Returns
    -------
    xarray.Dataset
        (prompt, layer, variant), one prompt for each case: ``canonicity``, the cosine of the last piece and the word
        as one token after the same context; ``control``, that of the last piece and another word (also of one token)
        after the same context; ``closer``, whether the first is greater (the control of position and context).
        ``variant`` "raw" compares the states as they are, "centred" without the mean of all words as one token, which
        makes any two raw states alike. NaN at layer 0 where a centred state is zero.

    Raises
    ------
    ValueError
        For a word of several tokens.

    References
    ----------
    Busigin and Pinter 2026, arXiv 2606.08562.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [t.text for t in ti.bundled_texts("article")[:8]]
    >>> lexicon = ti.lexicon.Lexicon.of(ti.Prompts.from_texts(texts, model, max_tokens=128))
    >>> cases = ti.lexicon.split_cases(lexicon, n_words=4)
    >>> ti.lexicon.canonicity(model, cases, layers=[0, 4])["layer"].values.tolist()
    [0, 4]
    """
    _one_token(cases)
    chosen = choose_layers(layers, model.info)
    sets = {name: cases.prompts(name) for name in ("pieces", "whole", "other")}
    sites, v, dims = resid(chosen), variable, ("prompt", "layer", "variant")

    def make(walker: Walker) -> xr.Dataset:
        def total(batch: Batch) -> dict[str, torch.Tensor]:
            return {
                "total": _last(batch, chosen).double().sum(0),
                "n": torch.tensor(len(batch), dtype=torch.int64, device="cpu"),
            }

        seen = walker.sums(sets["whole"], sites, total)
        centre = seen["total"] / seen["n"]

        def cosines(batch: Batch) -> dict[str, torch.Tensor]:
            others = (capture(model, sets[name], batch.numbers, sites) for name in ("whole", "other"))
            x, a, b = (_last(one, chosen).double() for one in (batch, *others))
            pairs = {"own": ((x, a), (x - centre, a - centre)), "control": ((x, b), (x - centre, b - centre))}
            return {name: torch.stack([_cosine(*pair) for pair in both], -1) for name, both in pairs.items()}

        found = walker.rows(sets["pieces"], sites, cosines)
        own, control = found["own"], found["control"]
        closer = np.where(np.isfinite(own) & np.isfinite(control), own > control, np.nan)
        data = {
            "canonicity": v(
                dims, own, "cosine of the last piece and the word as one token", "1", CANONICITY,
                short="cosine with the word itself", chance=0, beside=("control",),
            ),
            "control": v(
                dims, control, "cosine of the last piece and another word as one token", "1",
                short="cosine with another word", chance=0,
            ),
            "closer": v(
                dims, closer, "share closer to the word than to another word", "1", short="share closer to the word",
                range=(0, 1), chance=0.5,
            ),
        }  # fmt: skip
        return xr.Dataset(data, coords)

    coords = {
        "variant": v("variant", np.array(["raw", "centred"], object), "states as they are, or without their mean", "1"),
        **case_coords(cases),
        **layer_coords(chosen, model.info),
    }
    settings = {"layers": chosen, "whole": sets["whole"], "other": sets["other"]}
    return walked("canonicity", model, sets["pieces"], settings, make, **walk)


@checked(target=instance("Target") | string)
@steady
def repeat_words(
    model: Model,
    cases: Cases,
    layers: Iterable[int] | None = None,
    target: str | Target = "repeat",
    **walk: Unpack[Walk],
) -> xr.Dataset:
    """Ask the model to repeat words from the state of their last token alone: `patchscope` with the words as expected.

    Parameters
    ----------
    model : Model
        The model.
    cases : Cases
        What `natural_cases` returns: words of several tokens; split and misspelt ones can be asked for too.
    layers : iterable of int, optional
        All by default; they are decoded together.
    target : str or Target
        "Next is the same word twice: 1) {x} 2)" by default.
    **walk
        As in `retrieve_words`.

    Returns
    -------
    xarray.Dataset
        See `patchscope`: ``success`` (prompt, layer), ``first_layer``; as many tokens are compared as the word has.

    References
    ----------
    Kaplan et al. 2025, arXiv 2410.05864

    Examples
    --------
    >>> import tokinterp as ti
    >>> from tokinterp.lexicon import Lexicon, natural_cases
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts([t.text for t in ti.bundled_texts("story")], model, max_tokens=256)
    >>> found = ti.lexicon.repeat_words(model, natural_cases(Lexicon.of(prompts), n_words=3), [0, 2])
    >>> found["success"].shape
    (3, 2)
    """
    found = patchscope(model, cases.prompts("pieces"), target, layers, expected=cases.whole, **walk)
    return found.assign_coords(case_coords(cases))


def case_coords(cases: Cases) -> dict[str, xr.Variable]:
    """Return the coordinates that say what each case is."""
    v = variable
    texts = [[t.replace("\0", "\\x00") for t in column] for column in (cases.text, cases.written)]
    shown = ["|".join(cases.vocabulary.strings(p)) for p in cases.pieces]
    return {
        "prompt": v("prompt", np.arange(len(cases)), "number of the case", "1"),
        "word": v("prompt", np.array(texts[0], object), "the word", "1"),
        "written": v("prompt", np.array(texts[1], object), "the word as it is written in this case", "1"),
        "tokens": v("prompt", np.array(shown, object), "its tokens in this case", "1"),
        "n_pieces": v("prompt", np.array([len(p) for p in cases.pieces]), "tokens of the word in this case", "token"),
        "kind": v("prompt", cases.kind.astype(object), "split, typo or natural", "1"),
        "detail": v("prompt", cases.detail.astype(object), "number of pieces, or typing error", "1"),
    }


def _one_token(cases: Cases) -> None:
    long = [n for n, w in enumerate(cases.whole) if len(w) != 1]
    if long or not len(cases):
        said = f"{cases.text[long[0]]!r} has {len(cases.whole[long[0]])} tokens" if long else "there is no case"
        raise ValueError(f"{said}: give words that are one token (split_cases, typo_cases); for others repeat_words")


def _last(batch: Batch, layers: Sequence[int]) -> torch.Tensor:
    """Return (prompt, layer, d_model) states at the last token of each prompt."""
    rows = torch.arange(len(batch), dtype=torch.int64, device="cpu")
    last = torch.tensor(batch.lengths, dtype=torch.int64, device="cpu") - 1
    return torch.stack([batch.resid(n)[rows, last] for n in layers], 1)


def _cosine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the cosine along the last axis, NaN for a vector of zeros."""
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))


def _matrices(model: Model, names: set[str]) -> dict[str, torch.Tensor]:
    """Return the embeddings asked for as float32 (vocab, d_model)."""
    out = embeddings(model, names)
    for name, matrix in out.items():
        if matrix.shape[1] != model.info.d_model:
            raise ValueError(
                f"the {name} embedding of {model.info.id} has width {matrix.shape[1]}, its stream "
                f"{model.info.d_model}: leave out the variants that begin with {name!r}"
            )
    return out
