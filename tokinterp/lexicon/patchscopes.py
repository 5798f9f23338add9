"""Patchscopes: put a point of the stream into another prompt and read what the model says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ..models.steady import steady
from ..results.dataset import layer_coords, variable
from ..results.stamp import stamped
from ..run.edits import SiteEdit
from ..run.measurement import choose_layers
from ..run.sites import Site, resid
from ..run.stream import capture
from ..settings import checked, count, instance, integer, layers, one_of, refuse, several, string
from ..text.prompts import Prompts
from ..text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ..models.base import Model

TEMPLATES = {
    "identity": "cat -> cat\n1135 -> 1135\nhello -> hello\n{x}",
    "repeat": "Next is the same word twice: 1) {x} 2)",
    "describe": "Syria: country in the Middle East, Leonardo DiCaprio: American actor, Samsung: Korean company, {x}",
}
"""Targets by name: "identity" is that of Ghandeharioun et al. 2024 (arXiv 2401.06102), whose last line is
"?"; "repeat" that of Kaplan et al. 2025 (arXiv 2410.05864); "describe" asks for a few words on an entity, as
the former do in words of their own."""
STAND_IN = "?"  # token under the patch; with the patch at layer 0 it is never seen
PAPER = "Ghandeharioun et al. 2024, arXiv 2401.06102"


@checked(ids=several(count()), positions=several(count()))
@dataclass(frozen=True)
class Target:
    """Token ids of a target prompt, and the positions where the state is put.

    Attributes
    ----------
    ids : tuple of int
        The prompt, BOS included.
    positions : tuple of int
        Where the state is put.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]

    @classmethod
    @checked()
    def make(cls, template: str, model: Model) -> Target:
        """Tokenise a template, a name of `TEMPLATES` or a text in which ``{x}`` stands for one token.

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
        return cls(tuple(map(int, ids)), tuple(positions))


@checked(
    target=instance("Target") | string,
    layer=count() | layers,
    position=integer | several(integer, 1),
    target_layer=count() | one_of("same"),
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
    target_layer: int | str = 0,
    map: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
    n_tokens: int = 1,
    expected: Sequence[Sequence[int]] | None = None,
    true: Sequence[int] | None = None,
    target_model: Model | None = None,
    batch_tokens: int = 8192,
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
        ``"identity"``, ``"repeat"``, ``"describe"``, a text in which ``{x}`` marks the place, or token ids.
    layer : int or iterable of int, optional
        Layers from which a state is taken; all by default.
    position : int or sequence of int, optional
        Position of the state in each source prompt, BOS counted; the last token by default.
    target_layer : int or "same"
        Layer of the target prompt at which the state replaces what is there: by default 0, what enters block 0; "same"
        is the layer from which it was taken.
    map : callable, optional
        (states (row, d_model), layer) -> states for the target model.
    n_tokens : int
        Tokens decoded; at least as many as the longest of ``expected``.
    expected : sequence of sequences of int, optional
        (prompt,) token ids that count as success; compared as text, without the space before it.
    true : sequence of int, optional
        (prompt,) token whose probability after the target prompt is asked for.
    target_model : Model, optional
        Runs the target; ``model`` by default.
    batch_tokens : int
        Most tokens in a batch.

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
    reader = model if target_model is None else target_model
    prompts = source if isinstance(source, Prompts) else Prompts.from_texts(source, model)
    layers = choose_layers([layer] if isinstance(layer, int) else layer, model.info)
    place = _positions(position, prompts)
    template = target if isinstance(target, Target) else Target.make(target, reader)
    steps = max([n_tokens, *(len(e) for e in expected or [])])
    _check(template, reader, target_layer, layers, steps, len(prompts), expected, true)
    vocabulary = Vocabulary(reader.tokenizer, reader.info.d_vocab)
    generated = np.zeros((len(prompts), len(layers), steps), np.int64)
    logprob = np.full((len(prompts), len(layers)), np.nan)
    answer = torch.tensor(
        [-1] * len(prompts) if true is None else [int(t) for t in true], dtype=torch.int64, device="cpu"
    )
    for numbers in prompts.batches(batch_tokens, model=model):
        batch = capture(model, prompts, numbers, resid(layers))
        rows, at = torch.arange(len(numbers), dtype=torch.int64, device="cpu"), torch.from_numpy(place[numbers])
        taken = [batch.resid(n)[rows, at] for n in layers]
        states = torch.stack(taken if map is None else [map(x, n) for x, n in zip(taken, layers, strict=True)], 1)
        ids, first = _decode(
            reader, template, states.to(reader.device), layers, target_layer, steps, answer[numbers], batch_tokens
        )
        generated[numbers], logprob[numbers] = ids.cpu().numpy(), first.cpu().numpy()
    v = variable
    strings = np.array(vocabulary.strings(generated.ravel()), object).reshape(generated.shape)
    data = {
        "generated": v(("prompt", "layer", "step"), generated, "token decoded greedily after the target", "1", PAPER),
        "text": v(("prompt", "layer"), strings.sum(-1), "text decoded greedily after the target prompt", "1"),
    }
    if expected is not None:
        success = _success(generated, expected, vocabulary)
        data["success"] = v(("prompt", "layer"), success.astype(float), "share decoded as expected", "1", PAPER)
        data["first_layer"] = v("prompt", first_layer(success, layers), "first layer decoded as expected", "1")
    if true is not None:
        right = generated[:, :, 0] == np.asarray(true)[:, None]
        data["precision"] = v(
            ("prompt", "layer"), right.astype(float), "share whose first token decoded is the true one", "1", PAPER
        )
        data["surprisal"] = v(("prompt", "layer"), -logprob, "surprisal of the true token", "nat", PAPER)
    coords = {
        "prompt": v("prompt", np.arange(len(prompts)), "number of the prompt in the input", "1"),
        "source_position": v("prompt", place, "position of the state in the source, BOS counted", "1"),
        "step": v("step", np.arange(steps), "token decoded, 0 first", "1"),
        **layer_coords(layers, model.info),
    }
    settings = {
        "target": list(template.ids), "positions": list(template.positions), "target_layer": target_layer,
        "layers": layers, "position": place.tolist(), "n_tokens": steps, "map": map,
        "target_model": reader, "expected": [list(e) for e in expected or []], "true": answer.tolist(),
    }  # fmt: skip
    return stamped(xr.Dataset(data, coords), "patchscope", model, prompts, settings)


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
    target: Target, reader: Model, target_layer: int | str, layers: list[int], steps: int, n: int,
    expected: Sequence[Any] | None, true: Sequence[Any] | None,
) -> None:  # fmt: skip
    if not target.positions or min(target.positions) < 0 or max(target.positions) >= len(target.ids):
        raise ValueError(f"target: positions {list(target.positions)}: the target prompt has {len(target.ids)} tokens")
    if target_layer == "same":
        choose_layers(layers, reader.info)
    else:
        choose_layers([int(target_layer)], reader.info)
    if len(target.ids) + steps - 1 > reader.info.max_tokens:
        raise ValueError(
            f"n_tokens={steps}: target of {len(target.ids)} tokens and {steps} to decode: {reader.info.id} has a "
            "context of "
            f"{reader.info.max_tokens}"
        )
    for name, given in (("expected", expected), ("true", true)):
        if given is not None and len(given) != n:
            raise ValueError(f"{name} has {len(given)} entries for {n} source prompts: give one for each")
    if expected is not None and not all(len(e) for e in expected):
        raise ValueError("expected has an empty entry: give at least one token id for each source prompt")


def _decode(
    reader: Model, target: Target, states: torch.Tensor, layers: list[int], target_layer: int | str, steps: int,
    true: torch.Tensor, batch_tokens: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return (prompt, layer, step) ids decoded, and (prompt, layer) log-probability of the true token, of states."""
    n, device = len(states), reader.device
    out = torch.empty(n, len(layers), steps, dtype=torch.int64, device=device)
    first = torch.empty(n, len(layers), device=device, dtype=torch.float32)
    size = max(1, batch_tokens // (len(target.ids) + steps))
    # With "same", each layer has its own place to be put; else all of them lie in one batch.
    groups = [[i] for i in range(len(layers))] if target_layer == "same" else [list(range(len(layers)))]
    answer = true.to(device).clamp_min(0)[:, None]
    for group in groups:
        at = layers[group[0]] if target_layer == "same" else int(target_layer)
        rows = states[:, group].flatten(0, 1)
        wanted = answer.expand(n, len(group)).reshape(-1)
        parts = [
            _greedy(reader, target, rows[a : a + size], at, steps, wanted[a : a + size])
            for a in range(0, len(rows), size)
        ]
        out[:, group] = torch.cat([p[0] for p in parts]).unflatten(0, (n, len(group)))
        first[:, group] = torch.cat([p[1] for p in parts]).unflatten(0, (n, len(group)))
    return out, first


@torch.no_grad()
def _greedy(
    reader: Model, target: Target, states: torch.Tensor, layer: int, steps: int, wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode one batch: a copy of the target for each state."""
    last = Site("resid", reader.info.n_layers)
    ids = torch.tensor(target.ids, device=reader.device, dtype=torch.int64).expand(len(states), -1)
    first = torch.empty(0, dtype=torch.float32, device="cpu")
    for step in range(steps):
        where = torch.zeros_like(ids, dtype=torch.bool)
        where[:, list(target.positions)] = True
        edit = SiteEdit(Site("resid", layer), "replace", where, states[:, None])
        logits = reader.unembed(reader.run(ids, [last], edits=[edit])[last][:, -1])
        if step == 0:
            first = logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    return ids[:, -steps:], first


def _success(generated: np.ndarray, expected: Sequence[Sequence[int]], vocabulary: Vocabulary) -> np.ndarray:
    """Return (prompt, layer) whether the tokens decoded are the text expected, without the space before it."""
    out = np.zeros(generated.shape[:2], bool)
    for n, ids in enumerate(expected):
        goal = b"".join(vocabulary.bytes(list(ids))).removeprefix(b" ")
        for i, found in enumerate(generated[n, :, : len(ids)]):
            out[n, i] = b"".join(vocabulary.bytes(found)).removeprefix(b" ") == goal
    return out
