"""
What each layer would answer, token by token
============================================

Each cell is the most probable next token at that layer, bold where it is the true one.
"""

import tokinterp as ti

model = ti.load_model()
text = ti.bundled_texts("article")[3].text
prompts = ti.Prompts.from_texts([text], model, max_tokens=16)
run = ti.measure(model, prompts, {"lens": ti.lens.LogitLens(top=1)}, progress=False)
ti.lens.plots.lens_table(run["lens"], prompt=0)
