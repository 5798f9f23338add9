"""
Erasure: units of a text, by probes
===================================

Probes at two layers; where the true token fades from one to the other, psi is high, and the text is cut there.
"""

import tokinterp as ti

model = ti.load_model("bundled/narrow")
texts = [t.text for t in ti.bundled_texts()]
fit, test = (ti.Prompts.from_texts(part, model, max_tokens=256) for part in (texts[:54], texts[54:]))
probes = ti.erasure.fit_probes(model, fit, layers=[4, 8], offsets=[-2, -1, 0], method="lda", progress=False)
asked = {"erasure": ti.erasure.ErasureScores(probes, start=4, end=8, tokens=None)}
segments = ti.measure(model, test, asked, progress=False)["erasure"].to_dataset()
ti.erasure.plots.erasure_map(segments, prompt=0, positions=range(32))

# %%
# Beside the same measurement on shuffled text, in which there are no words to complete:

shuffled = ti.measure(model, ti.text.shuffle_blocks(test, 5), asked, progress=False)["erasure"].to_dataset()
ti.erasure.plots.psi_distribution(segments, {"shuffled": shuffled})
