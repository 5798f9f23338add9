"""Probes of tokens that are still to come: what a period decides is read 3 and 6 places ahead, and nothing else."""

import numpy as np
from tiny import tiny

import tokinterp as ti
from tokinterp.erasure.probe_scores import score_probes

AHEAD = list(range(1, 9))


def periodic(n, seed):
    """Prompts that say three of twelve tokens again and again."""
    rng = np.random.default_rng(seed)
    return ti.Prompts.from_ids([[1, *np.tile(rng.integers(10, 22, 3), 9)] for _ in range(n)], tiny())


def test_probes_of_offsets_1_to_8_find_what_the_text_decides_and_nothing_else():
    options = {"layers": [0], "offsets": AHEAD, "method": "lda", "progress": False}
    probes = ti.erasure.fit_probes(tiny(), periodic(150, 0), **options)
    ds = score_probes(probes, tiny(), periodic(60, 1), progress=False, n_boot=20)
    found = ds.sel(subset="all")
    assert found["offset"].values.tolist() == AHEAD
    accuracy, unigram = found["accuracy"].sel(layer=0).values, found["unigram_accuracy"].values
    sure = np.isin(AHEAD, (3, 6))
    assert accuracy[sure].min() > 0.95
    assert np.abs(accuracy - unigram)[~sure].max() < 0.1
