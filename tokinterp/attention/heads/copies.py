"""Prompts in which something is said twice: where induction heads look, and what they copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...kernels.state import neutral
from ...settings import checked, count, instance, several
from ...text.items import Tokens
from ...text.marks import mark
from ...text.prompts import Prompts

if TYPE_CHECKING:
    from ...models.base import Model
    from ...text.spans import Spans

SIZES = (2, 3, 4, 5)
LENGTH = 30


@checked()
@dataclass(frozen=True)
class Copies:
    """Prompts of one kind of entities, all with as many filler tokens.

    Attributes
    ----------
    entities : list of tuple of int
        Token ids of what is copied, one for each prompt.
    repeated, shuffled : Prompts
        Tokens, the entity, other tokens, a new line, and the first tokens again, up to where the entity would follow;
        in the control these stand in another order, and the last of them is none that the entity followed.  Marked
        ``next`` and ``end``: the first token of the entity, and its last.
    clean, corrupted : Prompts
        Tokens, the entity, a new line, the same tokens, the first token of the entity; corrupted prompts begin with as
        many other tokens.  Their last two predictions are the first and the second token of the entity.
    """

    entities: list[tuple[int, ...]]
    repeated: Prompts
    shuffled: Prompts
    clean: Prompts
    corrupted: Prompts


@checked(spans=instance("Spans"), length=count(2), sizes=several(count(2), 1, ascending=True), n=count(1))
@neutral()
def copy_prompts(
    model: Model, prompts: Prompts, spans: Spans, *, random: bool = False, n: int = 64, length: int = LENGTH,
    sizes: Sequence[int] = SIZES, seed: int = 0,
) -> Copies:  # fmt: skip
    """Build prompts that say something twice, of the tokens of texts.

    Parameters
    ----------
    model : Model
        Brings BOS and the tokens of a new line.
    prompts : Prompts
        From whose tokens all is drawn: filler tokens are the first of a text, in random order.
    spans : Spans
        What is copied: words, entities, multiword expressions on the same texts.
    random : bool
        Whether each entity gives way to as many random tokens of a text.
    n : int
        Prompts, as many of each size, as far as there are different entities.
    length : int
        Tokens of the first half, the entity counted.
    sizes : sequence of int
        Tokens of an entity.
    seed : int
        Of all draws.

    Raises
    ------
    ValueError
        If no text is as long as the fillers, the prompts do not fit the context, or no span has as many tokens.

    References
    ----------
    Feucht, Todd, Wallace and Bau 2025, The Dual-Route Model of Induction, arXiv 2504.03022.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> texts = ti.Prompts.from_texts([t.text for t in ti.bundled_texts("story")], model, max_tokens=128)
    >>> made = ti.attention.copy_prompts(model, texts, ti.Spans.words(texts), n=2, sizes=[2])
    >>> [len(e) for e in made.entities], made.clean.lengths == made.corrupted.lengths
    ([2, 2], True)
    """
    if sizes[-1] > length // 2:
        raise ValueError(f"length={length}: an entity of {sizes[-1]} tokens needs a length of {2 * sizes[-1]} or more")
    if 2 * length + 2 > model.info.max_tokens:
        raise ValueError(
            f"length={length}: prompts of up to {2 * length + 2} tokens do not fit the {model.info.max_tokens} of "
            f"{model.info.id}: give a smaller length"
        )
    tokens = Tokens(model)
    line = tokens.ids("\n")[-1:]
    pools = [ids[~prompts.vocabulary.special(ids)] for ids in (prompts.ids(i) for i in range(len(prompts)))]
    pools = [p.tolist() for p in pools if len(p) >= length]
    if not pools:
        raise ValueError(
            f"prompts: none of the {len(prompts)} has {length} tokens that are not special: give longer ones"
        )
    draw = np.random.default_rng([seed, length])

    def some(k: int) -> list[int]:
        return draw.permutation(pools[int(draw.integers(len(pools)))][:k]).tolist() if k else []

    entities = _entities(prompts, spans, sizes, n, draw)
    entities = [tuple(some(length)[: len(e)]) for e in entities] if random else entities
    rows: dict[str, list[list[int]]] = {k: [] for k in ("repeated", "shuffled", "clean", "corrupted")}
    at = []
    for entity in map(list, entities):
        size = len(entity)
        before = int(draw.integers(length // 2, length - size + 1))
        first, second = some(before), some(length - before - size)
        start = [*tokens.bos, *first]
        rows["repeated"].append([*start, *entity, *second, *line, *first])
        rows["shuffled"].append([*start, *entity, *second, *line, *_reordered(first, draw)])
        at.append([len(start), len(start) + size])
        first, end = some(length - size), [*line]
        end += [*first, entity[0]]
        rows["clean"].append([*tokens.bos, *first, *entity, *end])
        rows["corrupted"].append([*tokens.bos, *some(length), *end])
    edges = np.array(at)
    marks = {"next": np.stack([edges[:, 0], edges[:, 0] + 1], 1), "end": np.stack([edges[:, 1] - 1, edges[:, 1]], 1)}
    made = {k: Prompts.from_ids(ids, model) for k, ids in rows.items()}
    told = {k: mark(made[k], **marks) for k in ("repeated", "shuffled")}
    return Copies(entities, **{**made, **told})


def _entities(
    prompts: Prompts, spans: Spans, sizes: Sequence[int], n: int, draw: np.random.Generator
) -> list[tuple[int, ...]]:
    """Return ids of different spans, as many of each size, as far as there are."""
    per = [n // len(sizes) + (i < n % len(sizes)) for i in range(len(sizes))]
    found = spans.align(prompts)
    ids = [tuple(prompts.ids(p)[a:b].tolist()) for p, a, b in zip(found.prompt, found.start, found.stop, strict=True)]
    ids = list(dict.fromkeys(ids))
    out: list[tuple[int, ...]] = []
    for size, many in zip(sizes, per, strict=True):
        fits = [e for e in ids if len(e) == size]
        out += [fits[i] for i in np.sort(draw.permutation(len(fits))[:many])]
    if not out:
        raise ValueError(f"spans: none of {len(spans)} has {list(sizes)} tokens in these texts: give other sizes")
    return out


def _reordered(ids: list[int], draw: np.random.Generator) -> list[int]:
    """Return tokens in another order, the last one another token than before, where there is any."""
    out = draw.permutation(ids).tolist()
    others = [i for i, t in enumerate(out) if t != ids[-1]]
    if out[-1] == ids[-1] and others:
        out[-1], out[others[0]] = out[others[0]], out[-1]
    return out
