"""
Do tokens keep their neighbours from layer to layer?
====================================================

Share of the nearest neighbours that are the same at two layers, with its level by chance.
"""

import tokinterp as ti

model = ti.load_model()
texts = [t.text for t in ti.bundled_texts("article")[:6]]
prompts = ti.Prompts.from_texts(texts, model, max_tokens=200)
asked = {"overlap": ti.geometry.NeighbourOverlap(k=(10,), labels=())}
run = ti.measure(model, prompts, asked, progress=False)
ti.plots.curves(run["overlap"], "overlap")

# %%
# Between all pairs of layers:

ti.plots.maps(run["overlap"], "overlap_pair")
