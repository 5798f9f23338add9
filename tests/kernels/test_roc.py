"""The area under the ROC curve: scikit-learn and scipy, ties, weights, rows and draws at once, what has no order."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from tokinterp.kernels.roc import auroc


def test_it_is_the_share_of_pairs_in_order():
    draw = torch.Generator().manual_seed(1)
    score = torch.randint(0, 6, (40,), generator=draw).double()
    yes = torch.rand(40, generator=draw) < 0.4
    pairs = [(a, b) for a in score[yes].tolist() for b in score[~yes].tolist()]
    expected = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert float(auroc(score, yes, ~yes)) == pytest.approx(expected)
    weights = torch.randint(0, 3, (5, 40), generator=draw)
    repeated = [float(auroc(*(x.repeat_interleave(w) for x in (score, yes, ~yes)))) for w in weights]
    found = auroc(score[None], weights * yes, weights * ~yes)
    assert found.tolist() == pytest.approx(repeated), "draws of a bootstrap share one sorting"
    one = roc_auc_score(yes.numpy(), score.numpy(), sample_weight=weights[0].numpy())
    assert float(found[0]) == pytest.approx(one)
    assert auroc(score, yes | True, ~yes & False).isnan()


def test_probabilities_are_those_of_the_rank_test_and_half_by_chance():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(0, 6, (300, 40)).astype(float))
    yes = torch.from_numpy(rng.random((300, 40)) < 0.4)
    no = ~yes & torch.from_numpy(rng.random((300, 40)) < 0.8)
    found = auroc(x, yes, no)
    for i in range(5):
        a, b = x[i][yes[i]].numpy(), x[i][no[i]].numpy()
        assert float(found[i]) == pytest.approx(stats.mannwhitneyu(a, b).statistic / len(a) / len(b))
    assert float(found.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(auroc(x + 9 * yes, yes, no).min()) == 1
    assert auroc(x[:1], yes[:1], no[:1] & False).isnan().all()
    torch.testing.assert_close(auroc(x.where(yes | no, torch.nan), yes, no), found)
    split = [t.unflatten(0, (3, 100)) for t in (x, yes, no)]
    torch.testing.assert_close(auroc(*split).flatten(), found)


def test_long_texts_are_counted_to_the_last_pair():
    n = 20_000
    x = torch.arange(n, dtype=torch.float32)[None] % 7
    yes = torch.arange(n)[None] % 2 == 0
    a, b = (x[0][w].double().numpy() for w in (yes[0], ~yes[0]))
    wanted = stats.mannwhitneyu(a, b).statistic / len(a) / len(b)
    assert float(auroc(x, yes, ~yes)) == pytest.approx(wanted, rel=1e-12)


def test_a_score_without_an_order_is_no_number_unless_it_does_not_count():
    score = torch.tensor([1.0, torch.nan, 2.0, 3.0])
    some = torch.tensor([True, False, False, False])
    assert float(auroc(score, ~some & ~score.isnan(), some)) == 1
    assert auroc(score, ~some, some).isnan()
    assert auroc(score, some, ~some).isnan()
