"""
How linear is a block?
======================

One linear map for all tokens: as published, held out, and the floor that unrelated clouds have.
"""

import tokinterp as ti

model = ti.load_model()
texts = [t.text for t in ti.bundled_texts("article")[:12]]
prompts = ti.Prompts.from_texts(texts, model, max_tokens=200)
run = ti.measure(model, prompts, {"linearity": ti.linearity.Linearity()}, progress=False)
ti.plots.curves(run["linearity"], ["linearity", "linearity_held_out"])
