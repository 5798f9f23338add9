"""All that is measured of the filler positions of a trained network, in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...geometry.dimension import IntrinsicDimension
from ...geometry.spectrum import Spectrum
from ...lens.lens import LogitLens
from ...models.steady import steady
from ...run.engine import measure
from ...settings import checked, count
from .contents import FillerContents, filler_prompts
from .dot_attention import DotAttention
from .network import as_model

if TYPE_CHECKING:
    import xarray as xr

    from .task import Task


@checked(prompts=count(1))
@steady
def read_dots(lm: Any, task: Task, *, prompts: int = 200, seed: int = 0, progress: bool = False) -> xr.DataTree:
    """Measure the filler positions of a trained network in one pass of ``ti.measure``.

    Parameters
    ----------
    lm : LlamaForCausalLM
        From `tokinterp.fillers.tasks.training`.
    task : Task
        Match3.
    prompts, seed : int
        Test prompts, and which.
    progress : bool
        Show a bar.

    Returns
    -------
    DataTree
        Groups ``contents`` (`FillerContents`), ``dimension`` (`IntrinsicDimension` of the cloud of dots of each prompt,
        all other words left out), ``spectrum`` (of the dots where ``subset`` is "regular"), ``lens`` (`LogitLens`; at
        rows whose next word is a row it has no meaning), ``attention`` (`DotAttention`) and ``prompts``.

    Examples
    --------
    >>> import tokinterp as ti
    >>> tasks = ti.fillers.tasks
    >>> task = tasks.Task(n=4, d=2, m=3)
    >>> schedule, network = tasks.Schedule(steps=2, batch=8, rate=1e-3), tasks.Network(1, 16, 2, 16)
    >>> _, networks = tasks.train(
    ...     task, schedule=schedule, network=network, test_examples=20, device="cpu", progress=False)
    >>> "attention" in tasks.read_dots(networks[0], task, prompts=4)
    True
    """
    model = as_model(lm, task)
    scales = tuple(s for s in (2, 4, 8, 16) if 4 * s <= task.n_fillers) or (2,)
    asked = {
        "contents": FillerContents(task.n, task.d, task.m),
        "dimension": IntrinsicDimension(scales, k=max(scales), exclude=("special",), small="nan", tokens=0),
        "spectrum": Spectrum(exclude=("special",)),
        "lens": LogitLens(top=0, tokens=0),
        "attention": DotAttention(task.n, task.d, task.m),
    }
    return measure(model, filler_prompts(task, model, prompts, seed), asked, progress=progress)
