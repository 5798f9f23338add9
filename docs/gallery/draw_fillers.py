"""
Fillers before and after a question
===================================

Change of the log-probability of the answer; a gain by computing in the fillers would show above zero, and only after.
"""

import tokinterp as ti

model = ti.load_model()
questions = ti.bundled_questions("cloze")[:16]
found = ti.fillers.insert(model, questions, n_fillers=[2, 8], kinds=["dots", "words"])
ti.plots.curves(ti.fillers.insertion_tests(found, n_boot=100), "log_prob_change")
