"""The control of every effect: the same network before it has learned anything."""

from __future__ import annotations

import copy

import torch

from ..kernels.state import neutral, seeded
from ..settings import checked
from .hf import make_model
from .hooks import HookedLM


@checked()
def untrained(model: HookedLM, seed: int = 0) -> HookedLM:
    """Return a copy of a model with the weights it had before training: drawn anew, as its architecture draws them.

    Config, tokenizer, dtype and device are the model's own; the model itself is left alone, and so are torch's random
    numbers.  What a measurement finds in both networks was not learned: it comes from the architecture, the tokens
    and the text.

    Parameters
    ----------
    model : HookedLM
        What ``load_model`` or ``wrap`` returned, of any backend; the copy is a plain Hugging Face model.
    seed : int
        Of the weights.  The same seed gives other weights on a GPU than on a CPU.

    Returns
    -------
    HookedLM
        With ``info.id`` "NAME, untrained" and ``info.revision`` "seed N".

    Raises
    ------
    ValueError
        If the model is quantised, or spread over several devices.

    Examples
    --------
    >>> import tokinterp as ti
    >>> blank = ti.untrained(ti.load_model())
    >>> blank.info.id
    'tokinterp/bundled, untrained'
    """
    lm, name = model.lm, f"{model.info.id.removesuffix(', untrained')}, untrained"
    if getattr(lm.config, "quantization_config", None) is not None:
        raise ValueError(f"{model.info.id} is quantised: load it with dtype='bfloat16' to make an untrained copy")
    devices = {p.device for p in lm.parameters()}
    if len(devices) > 1:
        raise ValueError(
            f"{model.info.id} lies on {', '.join(sorted(map(str, devices)))}: an untrained copy needs one device"
        )
    device = devices.pop()
    dtype = getattr(torch, model.info.dtype)
    config = copy.deepcopy(lm.config)
    with neutral(), seeded(seed, device), device:
        blank = type(lm)._from_config(config, dtype=dtype)  # type: ignore[attr-defined]
    blank.eval()
    modules = model.modules if model.info.backend == "hf" else None
    return make_model(blank, model.tokenizer, id=name, revision=f"seed {seed}", modules=modules)
