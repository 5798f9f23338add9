"""The area under the curve against counting pairs."""

import pytest
import torch

from tokinterp.kernels.ranks import auroc


def test_auroc_is_the_share_of_pairs_in_order():
    torch.manual_seed(1)
    score = torch.randint(0, 6, (40,)).double()
    positive = torch.rand(40) < 0.4
    pairs = [(a, b) for a in score[positive].tolist() for b in score[~positive].tolist()]
    expected = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert float(auroc(score, positive)) == pytest.approx(expected)
    weights = torch.randint(0, 3, (5, 40))
    repeated = [float(auroc(score.repeat_interleave(w), positive.repeat_interleave(w))) for w in weights]
    assert auroc(score, positive, weights).tolist() == pytest.approx(repeated)
