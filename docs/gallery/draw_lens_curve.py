"""
Loss by layer: the logit lens
=============================

What the model would say if it stopped at a layer, for text and for the same tokens in random order.
"""

import tokinterp as ti

model = ti.load_model()
texts = [t.text for t in ti.bundled_texts("article")[:4]]
prompts = ti.Prompts.from_texts(texts, model, max_tokens=128)
run = ti.measure_nulls(model, prompts, {"lens": ti.lens.LogitLens(top=0)}, ("none", "shuffle:5"), progress=False)
ti.plots.curves(run["lens"], "cross_entropy")

# %%
# Where the curve of the text comes down and that of the shuffled tokens does not, the model uses the order of the
# tokens. At layer 0 both are far above the last layer: the embedding mostly repeats its input.
