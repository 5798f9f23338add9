"""A measurement of one's own is tried on the longest prompt before the run: its author's mistakes show at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..models.base import Model
from ..results import dataset
from ..text.prompts import Prompts
from .edits import Edit
from .measurement import Measurement
from .stream import capture, nonfinite_layer

WAY = "declare it in fields (and dimensions of your own in coords), or label it with tokinterp.results.dataset.variable"


def try_out(model: Model, prompts: Prompts, measurements: Mapping[str, Measurement], edits: Sequence[Edit]) -> None:
    """Measure the longest prompt with what is not of this package, and check the result.

    Raises
    ------
    ValueError
        If the result does not follow the conventions; names the measurement and says what to write.
    Exception
        Whatever ``update`` or ``result`` raises; a ValueError of ``result`` counts as a word about so short an input.
    """
    own = {k: m for k, m in measurements.items() if m.tried and not type(m).__module__.startswith("tokinterp.")}
    for name, m in own.items():
        m.begin(model.info, prompts)
        sites = [] if m.streams else m.sites(model.info)
        longest = max(range(len(prompts)), key=lambda p: prompts.lengths[p])
        batch = capture(model, prompts, [longest], sites, edits, streaming=[m] if m.streams else ())
        if int(nonfinite_layer(batch)[0]) >= 0:
            continue  # the run leaves it out, too
        batch.requests = m.requests(model.info)
        try:
            for reading in range(m.passes):
                m.reading = reading
                m.update(batch)
                m.end_reading()
        except torch.OutOfMemoryError:
            continue  # the run says what can be done
        try:
            ds = m.result()
        except ValueError:
            continue
        for d in ds.dims:
            if d not in dataset.DIMS and d not in ds.coords:
                raise ValueError(
                    f"{name}: unknown dimension {d!r} in what {type(m).__name__} gives: say dimensions of your own in "
                    f"coords(), such as {{{d!r}: (values, 'what they are', '1')}}"
                )
        placed = "position" in ds.coords and {"token_prompt", "prompt"} & {*ds.coords}
        if "token" in ds.dims and "text" not in ds.coords and not placed:
            raise ValueError(
                f"{name}: variables of single tokens need the coordinates token_prompt and position, as keep() of "
                f"{type(m).__name__} would give them: {WAY}"
            )
        ds.attrs = {**dataset.provenance(model.info, prompts, {}, ""), **ds.attrs}
        try:
            dataset.check(ds)
        except ValueError as error:
            raise ValueError(f"{name}: {type(m).__name__} gives what is {error}: {WAY}") from None
