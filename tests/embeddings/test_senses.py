"""Senses told by codes: a planted code, chance, the AUROC of scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tokinterp.embeddings import senses


def test_a_planted_code_tells_senses_and_permuted_ones_are_chance():
    rng = np.random.default_rng(0)
    codes, meant = rng.random((200, 5)), np.array(["bank", "shore"])[rng.integers(0, 2, 200)]
    codes[:, 3] -= 0.7 * (meant == "shore")
    fitted = np.arange(200) < 120
    area, null, which = senses.tell_senses(codes, meant, fitted)
    assert which.tolist() == [3, 3]
    expected = roc_auc_score(meant[~fitted] == "bank", codes[~fitted, 3])
    np.testing.assert_allclose(area, expected)
    assert expected > 0.85
    np.testing.assert_allclose(null, 0.5, atol=0.08)
    noise = [senses.tell_senses(rng.random((60, 20)), meant[:60], np.arange(60) < 40, n)[0] for n in range(40)]
    assert np.mean(noise) == pytest.approx(0.5, abs=0.06), "the best of 20 codes is chosen elsewhere"
    scores = np.round(rng.random((50, 3)), 1)
    yes = rng.random(50) < 0.4
    np.testing.assert_allclose(senses.area_of(scores, yes), [roc_auc_score(yes, s) for s in scores.T])
    assert np.isnan(senses.tell_senses(codes, meant, np.ones(200, bool))[0]).all(), "nothing is held out"


def test_texts_of_a_document_are_permuted_together():
    rng = np.random.default_rng(0)
    document = np.repeat(np.arange(12), 20)
    codes = rng.standard_normal((12, 60))[document] + 0.01 * rng.standard_normal((240, 60))
    meant = np.array(["a", "b"])[np.arange(12) % 2][document]
    half = document % 4 < 2
    spread = [np.std([senses.tell_senses(codes, meant, half, n, d)[1, 0] for n in range(12)])
              for d in (document, None)]  # fmt: skip
    assert spread[0] > 3 * spread[1], "12 documents are 12 draws of chance, not 240"
    same = senses.tell_senses(codes, meant, half, 0, np.arange(240))
    np.testing.assert_array_equal(same, senses.tell_senses(codes, meant, half))
