"""Patchscopes: put a point of the stream into another prompt and read what the model says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
import xarray as xr

from ..models.steady import steady
from ..results.dataset import layer_coords, variable
from ..run.decoding import decode
from ..run.edits import SiteEdit
from ..run.measurement import choose_layers
from ..run.sites import Site, resid
from ..run.walk import Walk, Walker, walked
from ..settings import checked, count, instance, integer, layers, one_of, refuse, several, string
from ..text.prompts import Prompts
from ..text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ..models.base import Model
    from ..run.batch import Batch

TEMPLATES = {
    "identity": "cat -> cat\n1135 -> 1135\nhello -> hello\n{x}",
    "repeat": "Next is the same word twice: 1) {x} 2)",
    "describe": "Syria: country in the Middle East, Leonardo DiCaprio: American actor, Samsung: Korean company, {x}",
}
"""Targets by name: "identity" is that of Ghandeharioun et al. 2024 (arXiv 2401.06102), whose last line is
"?"; "repeat" that of Kaplan et al. 2025 (arXiv 2410.05864); "describe" asks for a few words on an entity, as
the former do in words of their own."""
STAND_IN = "?"  # token under the patch; with the patch at layer 0 it is never seen
LAYER = count() | one_of("same")
PAPER = "Ghandeharioun et al. 2024, arXiv 2401.06102"


@checked(ids=several(count()), positions=several(count()), layer=LAYER)
@dataclass(frozen=True)
class Target:
    """Token ids of a target prompt, and where in it a state is put.

    Attributes
    ----------
    ids : tuple of int
        The prompt, BOS included.
    positions : tuple of int
        Where the state is put.
    layer : int or "same"
        Layer at which the state replaces what is there: by default 0, what enters block 0; "same" is the layer from
        which it was taken.
    map : callable, optional
        (states (row, d_model), layer) -> states for the model that reads the target.
    model : Model, optional
        Reads the target; the model that gives the states by default.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    layer: int | str = 0
    map: Callable[[torch.Tensor, int], torch.Tensor] | None = None
    model: Model | None = None

    @classmethod
    @checked()
    def make(cls, template: str, model: Model, **put: Any) -> Target:
        """Tokenise a template, a name of `TEMPLATES` or a text in which ``{x}`` stands for one token.

        Parameters
        ----------
        template : str
            Of the target prompt.
        model : Model
            Reads it.
        **put
            ``layer`` and ``map`` of the target.

        Raises
        ------
        ValueError
            If ``{x}`` is not there, or the model has no tokenizer.

        Examples
        --------
        >>> import tokinterp as ti
        >>> target = Target.make("Next is the same word twice: 1) {x} 2)", ti.load_model())
        >>> target.positions[0] < len(target.ids) - 1
        True
        """
        text = TEMPLATES.get(template, template)
        parts = text.split("{x}")
        if len(parts) < 2:
            raise ValueError(
                f"template={template!r} of the target: write {{x}} for the token, or one of {', '.join(TEMPLATES)}"
            )
        if model.tokenizer is None:
            raise ValueError(f"{model.info.id} has no tokenizer: give patchscope a Target(ids, positions)")
        vocabulary = Vocabulary(model.tokenizer, model.info.d_vocab)

        def tokens(part: str) -> list[int]:
            if part and vocabulary.prefix_space and part.startswith(" "):
                part = part[1:]  # the tokenizer puts it back
            return list(model.tokenizer(part, add_special_tokens=False)["input_ids"]) if part else []

        ids = [vocabulary.bos] if vocabulary.adds_bos and vocabulary.bos is not None else []
        positions = []
        for n, part in enumerate(parts):
            if n:
                positions.append(len(ids))
                ids += tokens(STAND_IN)[-1:]
            # The space before {x} belongs to the word that the state stands for.
            ids += tokens(part.removesuffix(" ") if n < len(parts) - 1 else part)
        return cls(tuple(int(i) for i in ids), tuple(positions), model=model, **put)


@checked(
    target=instance("Target") | string,
    layer=count() | layers,
    position=integer | several(integer, 1),
    n_tokens=count(1),
    expected=several(several(count())),
    true=several(count()),
)
@steady
def patchscope(
    model: Model,
    source: Prompts | Sequence[str],
    target: str | Target = "identity",
    layer: int | Iterable[int] | None = None,
    *,
    position: int | Sequence[int] | np.ndarray | None = None,
    n_tokens: int = 1,
    expected: Sequence[Sequence[int]] | None = None,
    true: Sequence[int] | None = None,
    **walk: Unpack[Walk],
) -> xr.Dataset:
    """Put states of source prompts into a target prompt and decode what follows it, greedily.

    All layers and many sources are decoded together: one batch holds a copy of the target prompt for each of them.

    Parameters
    ----------
    model : Model
        Runs the sources.
    source : Prompts or sequence of str
        Where the states come from.
    target : str or Target
        ``"identity"``, ``"repeat"``, ``"describe"``, a text in which ``{x}`` marks the place, or a `Target`, which says
        by which model it is read, and at which layer the state is put.
    layer : int or iterable of int, optional
        Layers from which a state is taken; all by default.
    position : int or sequence of int, optional
        Position of the state in each source prompt, BOS counted; the last token by default.
    n_tokens : int
        Tokens decoded; at least as many as the longest of ``expected``.
    expected : sequence of sequences of int, optional
        (prompt,) token ids that count as success; compared as text, without the space before it.
    true : sequence of int, optional
        (prompt,) token whose probability after the target prompt is asked for.
    **walk
        ``batch_tokens``, ``store``, ``checkpoint_every``, ``progress``: see `tokinterp.run.walk.Walk`.

    Returns
    -------
    xarray.Dataset
        (prompt, layer): ``text`` and (with ``step``) ``generated`` ids; with ``expected`` also ``success`` and, per
        prompt, ``first_layer`` (NaN where no layer succeeds); with ``true`` also ``precision`` (whether the first token
        decoded is the true one: its mean is precision@1) and ``surprisal`` (nat).

    Raises
    ------
    ValueError
        For a layer, position or length that does not fit; before anything is run.

    Notes
    -----
    In models with learned positions the stream at layer 0 is token plus place: a state keeps the place of its source.

    References
    ----------
    Ghandeharioun et al. 2024, arXiv 2401.06102; Kaplan et al. 2025, arXiv 2410.05864 (target "repeat").

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> seen = ti.lexicon.patchscope(model, ["We sailed down the river"], "repeat", layer=[0, 4], n_tokens=2)
    >>> dict(seen["generated"].sizes)
    {'prompt': 1, 'layer': 2, 'step': 2}
    """
    template = target if isinstance(target, Target) else Target.make(target, model)
    reader = template.model or model
    prompts = source if isinstance(source, Prompts) else Prompts.from_texts(source, model)
    layers = choose_layers([layer] if isinstance(layer, int) else layer, model.info)
    place = _positions(position, prompts)
    steps = max([n_tokens, *(len(e) for e in expected or [])])
    _check(template, reader, layers, steps, {"expected": expected, "true": true}, len(prompts))
    vocabulary = Vocabulary(reader.tokenizer, reader.info.d_vocab)
    answer = torch.tensor(
        [-1] * len(prompts) if true is None else [int(t) for t in true], dtype=torch.int64, device="cpu"
    )

    def of_batch(batch: Batch) -> dict[str, torch.Tensor]:
        row = torch.arange(len(batch), dtype=torch.int64, device=batch.device)
        at = torch.from_numpy(place[batch.numbers]).to(batch.device)
        taken = [batch.resid(n)[row, at] for n in layers]
        states = [x if template.map is None else template.map(x, n) for x, n in zip(taken, layers, strict=True)]
        wanted = answer[batch.numbers].to(reader.device).clamp_min(0)
        return _decode(reader, template, torch.stack(states, 1).to(reader.device), layers, steps, wanted, batch.ids)

    def make(walker: Walker) -> xr.Dataset:
        found = walker.rows(prompts, resid(layers), of_batch)
        return xr.Dataset(_variables(found, layers, expected, true, vocabulary), coords)

    v = variable
    coords = {
        "prompt": v("prompt", np.arange(len(prompts)), "number of the prompt in the input", "1"),
        "source_position": v("prompt", place, "position of the state in the source, BOS counted", "1"),
        "step": v("step", np.arange(steps), "token decoded, 0 first", "1"),
        **layer_coords(layers, model.info),
    }
    settings = {
        "target": list(template.ids), "positions": list(template.positions), "target_layer": template.layer,
        "layers": layers, "position": place.tolist(), "n_tokens": steps, "map": template.map,
        "target_model": reader, "expected": [list(e) for e in expected or []], "true": answer.tolist(),
    }  # fmt: skip
    # The reader, which no argument of its own names, has to stay the same, too.
    return steady(lambda _: walked("patchscope", model, prompts, settings, make, **walk))(reader)


def _variables(
    found: dict[str, np.ndarray], layers: list[int], expected: Sequence[Sequence[int]] | None,
    true: Sequence[int] | None, vocabulary: Vocabulary,
) -> dict[str, xr.Variable]:  # fmt: skip
    """Label what was decoded; nothing is decoded, and nothing a success, where it is not finite."""
    v, each = variable, ("prompt", "layer")
    generated = found["generated"]
    known = np.all(generated >= 0, axis=2)
    strings = np.full(generated.shape, "", object)
    strings[known] = np.array(vocabulary.strings(generated[known].ravel()), object).reshape(-1, generated.shape[2])
    data = {
        "generated": v((*each, "step"), generated, "token decoded greedily after the target", "1", PAPER),
        "text": v(each, strings.sum(-1), "text decoded greedily after the target prompt", "1"),
    }
    if expected is not None:
        success = known & _success(np.where(known[..., None], generated, 0), expected, vocabulary)
        share = np.where(known, success, np.nan)
        data["success"] = v(
            each, share, "share decoded as expected", "1", PAPER, short="share decoded as expected", range=(0, 1)
        )
        data["first_layer"] = v("prompt", first_layer(success, layers), "first layer decoded as expected", "1")
    if true is not None:
        right = np.where(known, generated[:, :, 0] == np.asarray(true)[:, None], np.nan)
        data["precision"] = v(each, right, "share whose first token decoded is the true one", "1", PAPER)
        data["surprisal"] = v(each, -found["logprob"], "surprisal of the true token", "nat", PAPER)
    return data


def first_layer(success: np.ndarray, layers: Sequence[int]) -> np.ndarray:
    """Return the first layer (axis 1) at which each row succeeds, NaN where none does.

    Examples
    --------
    >>> first_layer(np.array([[False, True, True], [False, False, False]]), [0, 4, 8]).tolist()
    [4.0, nan]
    """
    return np.where(success.any(1), np.asarray(layers, float)[success.argmax(1)], np.nan)


def _positions(position: Any, prompts: Prompts) -> np.ndarray:
    """Return (prompt,) positions inside the prompts."""
    lengths = np.asarray(prompts.lengths)
    if position is not None and np.size(position) not in (1, len(lengths)):
        refuse("position", position, f"give one position, or one for each of the {len(lengths)} prompts")
    place = lengths - 1 if position is None else np.broadcast_to(np.asarray(position, np.int64), lengths.shape)
    bad = np.flatnonzero((place < 0) | (place >= lengths))
    if len(bad):
        raise ValueError(f"position={place[bad[0]]} of prompt {bad[0]}: it has positions 0 to {lengths[bad[0]] - 1}")
    return np.array(place, dtype=np.int64)


def _check(
    target: Target, reader: Model, layers: list[int], steps: int, given: Mapping[str, Sequence[Any] | None], n: int
) -> None:
    if not target.positions or min(target.positions) < 0 or max(target.positions) >= len(target.ids):
        raise ValueError(f"target: positions {list(target.positions)}: the target prompt has {len(target.ids)} tokens")
    choose_layers(layers if target.layer == "same" else [int(target.layer)], reader.info)
    if len(target.ids) + steps - 1 > reader.info.max_tokens:
        raise ValueError(
            f"n_tokens={steps}: target of {len(target.ids)} tokens and {steps} to decode: {reader.info.id} has a "
            f"context of {reader.info.max_tokens}"
        )
    for name, one in given.items():
        if one is not None and len(one) != n:
            raise ValueError(f"{name} has {len(one)} entries for {n} source prompts: give one for each")
    if not all(len(e) for e in given["expected"] or ()):
        raise ValueError("expected has an empty entry: give at least one token id for each source prompt")


def _decode(
    reader: Model, target: Target, states: torch.Tensor, layers: list[int], steps: int, wanted: torch.Tensor,
    source: torch.Tensor,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Return (prompt, layer, step) ids decoded, and (prompt, layer) log-probability of a token, of states.

    A batch has a copy of the target for each state, and about as many tokens as that of the source prompts.
    """
    n = len(states)
    ids = torch.tensor(target.ids, device=states.device, dtype=torch.int64)
    size = max(1, source.numel() // (len(ids) + steps))
    where = torch.zeros(1, len(ids), dtype=torch.bool, device=states.device)
    where[:, list(target.positions)] = True
    generated = torch.empty(n, len(layers), steps, dtype=torch.int64, device=states.device)
    logprob = torch.empty(n, len(layers), dtype=torch.float32, device=states.device)
    # With "same", each layer has its own place to be put; else all of them lie in one batch.
    groups = [[i] for i in range(len(layers))] if target.layer == "same" else [list(range(len(layers)))]
    for group in groups:
        site = Site("resid", layers[group[0]] if target.layer == "same" else int(target.layer))
        token = wanted[:, None].expand(n, len(group)).reshape(-1, 1)
        found = []
        for part, own in zip(states[:, group].flatten(0, 1).split(size), token.split(size), strict=True):
            copies = ids.expand(len(part), -1)
            edit = SiteEdit(site, "replace", where.expand(len(part), -1), part[:, None])
            decoded = decode(reader, copies, torch.ones_like(copies, dtype=torch.bool), steps, [edit])
            found.append((decoded.ids, decoded.first.gather(1, own)[:, 0]))
        generated[:, group], logprob[:, group] = (
            torch.cat(parts).unflatten(0, (n, len(group))) for parts in zip(*found, strict=True)
        )
    return {"generated": generated, "logprob": logprob}


def _success(generated: np.ndarray, expected: Sequence[Sequence[int]], vocabulary: Vocabulary) -> np.ndarray:
    """Return (prompt, layer) whether the tokens decoded are the text expected, without the space before it."""
    out = np.zeros(generated.shape[:2], bool)
    for n, ids in enumerate(expected):
        goal = b"".join(vocabulary.bytes(list(ids))).removeprefix(b" ")
        for i, found in enumerate(generated[n, :, : len(ids)]):
            out[n, i] = b"".join(vocabulary.bytes(found)).removeprefix(b" ") == goal
    return out
