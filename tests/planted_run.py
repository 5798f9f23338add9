"""Erasure scores of texts with planted units, by probes that see them."""

from planted import LinearProbes, PlantedModel, planted_texts

import tokinterp as ti
from tokinterp.erasure.erasure import ErasureScores
from tokinterp.text import Prompts

MODEL = PlantedModel()


def planted_run(prompts=None, kind=ErasureScores, **options):
    prompts = prompts or Prompts.from_texts(planted_texts(6), MODEL)
    options = {"start": 1, "end": 3, "tokens": None, **options}
    measurement = kind(LinearProbes.planted(MODEL, [1, 2, 3]), **options)
    tree = ti.measure(MODEL, prompts, {"erasure": measurement}, progress=False, batch_tokens=200)
    return tree["erasure"].to_dataset(), prompts
