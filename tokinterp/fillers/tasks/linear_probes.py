"""The answer read from single states of a trained network: a logistic regression for each layer and position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ...models.steady import steady
from ...results.dataset import layer_coords, variable
from ...run.sites import resid
from ...run.stream import stream
from ...settings import checked, count, positive, several
from ...stats.linear import logistic
from ...text.prompts import Prompts
from .network import as_model, network_info
from .probe import finish
from .task import Task, majority

if TYPE_CHECKING:
    from ...models.base import Model


@checked(positions=several(count(), 1), examples=count(1), ridge=positive)
@steady
def linear_probe(
    lm: Any, task: Task, *, positions: Sequence[int] | None = None, examples: int = 2000, ridge: float = 1e-2,
    seed: int = 0, device: torch.device | str | None = None,
) -> xr.Dataset:  # fmt: skip
    """Read the answer from single states: a logistic regression for each layer and position, nothing is finetuned.

    Parameters
    ----------
    lm : LlamaForCausalLM
        From `build` or `train`.
    task : Task
        Match3; its filler format is run.
    positions : sequence of int, optional
        Where to read; from the end of the input through the answer cue by default.
    examples : int
        For fitting, and as many again for testing.
    ridge : float
        Penalty on the squared weights, of standardised states, relative to the number of examples.
    seed : int
        Of the examples.
    device : torch.device or str, optional
        A GPU if there is one.

    Returns
    -------
    Dataset
        ``accuracy`` and ``shuffled`` (labels permuted before the fit: chance) (layer, position); ``majority``.

    Examples
    --------
    >>> import tokinterp as ti
    >>> tasks = ti.fillers.tasks
    >>> task = tasks.Task(n=4, d=2, m=3)
    >>> schedule, network = tasks.Schedule(steps=2, batch=8, rate=1e-3), tasks.Network(1, 16, 2, 16)
    >>> _, networks = tasks.train(
    ...     task, schedule=schedule, network=network, test_examples=20, device="cpu", progress=False)
    >>> tasks.linear_probe(networks[0], task, positions=[4], examples=60)["accuracy"].dims
    ('layer', 'position')
    """
    if task.family != "match3":
        raise ValueError(f"the linear probe reads True or False: it is defined for match3, not {task.family}")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    width = task.length("filler")
    where = list(range(task.n, width - 1) if positions is None else positions)
    if bad := [p for p in where if not 0 <= p < width - 1]:
        raise ValueError(f"positions {bad}: the words before the answer are numbered 0 to {width - 2}")
    sets = [task.test_set("filler", examples, seed + s, place) for s in (100, 101)]
    model = as_model(lm, task, device=place)
    labels = [(s.answer == task.words.true).cpu().numpy() for s in sets]
    draw = torch.Generator().manual_seed(seed)
    permuted = labels[0][torch.randperm(examples, generator=draw, dtype=torch.int64, device="cpu").numpy()]
    n_layers = lm.config.num_hidden_layers
    accuracy = np.full((2, n_layers + 1, len(where)), np.nan)
    for layer, (fit, test) in enumerate(zip(*(states_at(model, s.sequences.ids, where) for s in sets), strict=True)):
        fit, test = fit.double().cpu().numpy(), test.double().cpu().numpy()
        for p in range(len(where)):
            for row, y in enumerate((labels[0], permuted)):
                accuracy[row, layer, p] = logistic(fit[:, p], y, ridge).score(test[:, p], labels[1])
    info = network_info(lm, task, "")
    v = variable
    data = {
        "accuracy": v(
            ("layer", "position"), accuracy[0], "accuracy of the answer read from the state", "1",
            short="accuracy of the answer", range=(0, 1), chance="majority", beside=("shuffled",), along=("layer",),
        ),
        "shuffled": v(
            ("layer", "position"), accuracy[1], "the same, labels permuted", "1", short="labels permuted",
            range=(0, 1),
        ),
        "majority": v((), majority(sets[1].answer), "share of the most common answer", "1", short="majority"),
    }  # fmt: skip
    coords = {**layer_coords(range(n_layers + 1), info), "position": v("position", where, "position", "1")}
    parameters = {"task": asdict(task), "examples": examples, "ridge": ridge, "seed": seed, "positions": where}
    return finish(xr.Dataset(data, coords), lm, task, parameters, "FillersLinearProbe", seed)


def states_at(model: Model, ids: torch.Tensor, where: Sequence[int]) -> torch.Tensor:
    """Return the stream of examples (layer, example, place, d_model), on the device; NaN where it is not finite."""
    layers, prompts = range(model.info.n_layers + 1), Prompts.from_ids(ids.cpu().numpy(), model)
    shape = (len(layers), len(ids), len(where), model.info.d_model)
    out = torch.full(shape, torch.nan, dtype=getattr(torch, model.info.dtype), device=model.device)
    for batch in stream(model, prompts, resid(layers)):
        for layer in layers:
            out[layer, batch.numbers] = batch.resid(layer)[:, where]
    return out
