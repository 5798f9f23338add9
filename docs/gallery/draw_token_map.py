"""
A value of every token at every layer
=====================================

The cross-entropy of the next token, for one prompt; columns that stay high are tokens that no layer expects.
"""

import tokinterp as ti

model = ti.load_model()
text = ti.bundled_texts("article")[3].text
prompts = ti.Prompts.from_texts([text], model, max_tokens=40)
run = ti.measure(model, prompts, {"lens": ti.lens.LogitLens(top=0, tokens=None)}, progress=False)
layers = range(1, model.info.n_layers + 1)  # at layer 0 the values are so large that they would hide the others
ti.plots.maps(run["lens"], "token_cross_entropy", prompt=0, select={"layer": layers})
