"""
Conditions side by side, and their difference
=============================================

The same measurement with something changed during the pass, and over paired prompts what that costs.
"""

import tokinterp as ti

model = ti.load_model()
texts = [t.text for t in ti.bundled_texts("story")[:6]]
prompts = ti.Prompts.from_texts(texts, model, max_tokens=96)
conditions = {
    "whole": ti.Condition(prompts),
    "no MLP 3": ti.Condition(prompts, edits=[ti.edits.zero(ti.Site("mlp_out", 3))]),
    "first hidden": ti.Condition(prompts, edits=[ti.edits.knock_out([0])]),
}
run = ti.measure_conditions(model, conditions, {"lens": ti.lens.LogitLens(top=0)}, progress=False)
ti.plots.curves(run["lens"], "cross_entropy")

# %%
# The difference, with its interval:

ti.plots.curves(ti.contrast(run["lens"], "no MLP 3", minus="whole", n_boot=200), "cross_entropy")
