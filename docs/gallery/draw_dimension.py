"""
Intrinsic dimension over layers and scales
==========================================

In how many directions do the tokens of a prompt spread, and does the answer depend on the scale?
"""

import tokinterp as ti

model = ti.load_model()
texts = [t.text for t in ti.bundled_texts("article")[:6]]
prompts = ti.Prompts.from_texts(texts, model, max_tokens=200)
asked = {"dimension": ti.geometry.IntrinsicDimension(scales=(2, 4, 8, 16), tokens=0, small="nan")}
run = ti.measure_nulls(model, prompts, asked, ("none", "shuffle:5", "untrained"), progress=False)
ti.plots.curves(run["dimension"], "dimension", select={"scale": 4})

# %%
# Only a plateau, the same value at neighbouring scales, deserves the name of *the* dimension.

text = run["dimension"].to_dataset().sel(null="none")
ti.plots.curves(text, "dimension", along="scale", select={"layer": [1, 4, 8]})
