"""
Where attention goes
====================

How many times its share sets of keys get, net of the sink and of the position itself; 1 is chance.
"""

import tokinterp as ti

model = ti.load_model()
texts = [t.text for t in ti.bundled_texts("article")[:6]]
prompts = ti.Prompts.from_texts(texts, model, max_tokens=128)
keys = {"sink": "first", "separators": "separators", "other": "other"}
run = ti.measure(model, prompts, {"mass": ti.attention.AttentionMass(keys)}, progress=False)
ti.plots.curves(run["mass"], "net_enrichment")
