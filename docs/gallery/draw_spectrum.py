"""
Do a few tokens dominate?
=========================

Anisotropy and effective number of directions, of all rows and of the regular ones, without BOS and massive activations.
"""

import tokinterp as ti

model = ti.load_model()
texts = [t.text for t in ti.bundled_texts("article")[:6]]
prompts = ti.Prompts.from_texts(texts, model, max_tokens=200)
run = ti.measure(model, prompts, {"spectrum": ti.geometry.Spectrum()}, progress=False)
ti.plots.curves(run["spectrum"], "anisotropy")

# %%
# Where the two curves are apart, a mean over all tokens says more about a handful of outliers than about the text.

ti.plots.curves(run["spectrum"], "participation_ratio_unbiased")
