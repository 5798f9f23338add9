"""Every measurement of the package, a model in training mode and the same in eval mode, and fits for them."""

import importlib
import pkgutil
from functools import cache

import numpy as np
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti


@cache
def models():
    """A trained-mode model with much dropout, some modules of it in eval mode, and the same in eval mode."""
    settings = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5, "n_positions": 320}
    quiet = ti.wrap(tiny_lm("gpt2", **settings), byte_tokenizer(), id="dropout")
    loud = tiny_lm("gpt2", **settings).train()
    loud.transformer.h[1].eval()
    return quiet, ti.wrap(loud, byte_tokenizer(), id="dropout")


@cache
def texts():
    return ti.Prompts.from_texts(
        [t.text[: 285 + 9 * n] for n, t in enumerate(ti.bundled_texts("story")[:3])], models()[0]
    )


@cache
def fitted():
    model, prompts = models()[0], texts()
    return {
        "probes": ti.erasure.fit_probes(
            model, prompts, layers=[0, 1, 2, 3], offsets=[-2, -1, 0], method="lda", progress=False
        ),
        "decoder": ti.memory.fit_context_decoder(model, prompts, steps=1, rows=4, max_prefix=4, progress=False),
        "answers": [[5], [6], [7]],
        "sizes": [1, 2, 1],
        "concepts": {"it": [" the", " to"], "that": [" in"]},
        "estimator": lambda x: float(np.linalg.norm(x - x.mean(0))),
    }


def every_measurement():
    """Every measurement of the package that nothing else is derived from, by class."""
    for module in pkgutil.walk_packages(ti.__path__, "tokinterp."):
        if not module.name.startswith(("tokinterp.plots", "tokinterp.cli")):
            importlib.import_module(module.name)

    def below(kind):
        for sub in kind.__subclasses__():
            yield from below(sub)
            says = sub.fields or sub.result is not ti.Measurement.result
            if not sub.__subclasses__() and sub.__module__.startswith("tokinterp.") and says:
                yield sub

    return sorted({*below(ti.Measurement)}, key=lambda k: k.__name__)
