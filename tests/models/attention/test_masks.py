"""Masks of attention: what is open, what is closed in them, and windows that follow the places of tokens."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tokinterp.models.attention.masks import additive, check_sight, close, follow_places, open_edges

N = 5
Q = torch.zeros(1, 2, N, 4)
REAL = torch.ones(1, N, dtype=torch.bool)
TRIL = torch.ones(N, N, dtype=torch.bool).tril()


def test_open_edges_of_all_kinds_of_masks():
    assert torch.equal(open_edges(None, Q, Q, True)[0, 0], TRIL)
    assert bool(open_edges(None, Q, Q, False).all())
    for mask in (TRIL[None, None], additive(TRIL[None, None], torch.float32)):
        assert torch.equal(open_edges(mask, Q, Q, False)[0, 0], TRIL)
    added = additive(TRIL[None, None], torch.float16)
    assert added.dtype == torch.float16
    assert added[0, 0][TRIL].abs().sum() == 0
    assert additive(None, torch.float32) is None
    assert additive(added, torch.float32) is added


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_closing_edges_leaves_the_others(kind):
    cut = torch.zeros(1, 1, N, N, dtype=torch.bool)
    cut[0, 0, 3, 1] = True
    mask = {"none": None, "bool": TRIL[None, None], "float": additive(TRIL[None, None], torch.float32)}[kind]
    found = open_edges(close(mask, cut, Q, Q, True, REAL, 2), Q, Q, True)[0, 0]
    assert torch.equal(found, TRIL & ~cut[0, 0])
    cut[0, 0, 3, :4] = True
    with pytest.raises(ValueError, match="leaves position 3 of prompt 0 of the batch nothing to attend to in block 2"):
        close(mask, cut, Q, Q, True, REAL, 2)


def test_padding_may_be_blind():
    blind = TRIL.clone()
    blind[4] = False
    real = REAL.clone()
    real[0, 4] = False
    check_sight(blind[None, None], real, 0)
    with pytest.raises(ValueError, match="position 4"):
        check_sight(blind[None, None], REAL, 0)


def follow(mask, places, width=None, **config):
    module = nn.Identity()
    module.config = SimpleNamespace(**config)
    return follow_places(mask, Q, Q, mask is None, torch.tensor([places]), REAL, width, module)


def test_windows_are_counted_by_places():
    assert follow(None, [0, 1, 1, 1, 2]) is None  # nothing is closed
    for mask, width in ((None, 2), ((TRIL & ~TRIL.tril(-2))[None, None], None)):
        found = follow(mask, [0, 1, 1, 1, 2], width)[0, 0]
        places = torch.tensor([0, 1, 1, 1, 2])
        far = places[:, None] - places
        assert torch.equal(found, TRIL & (far < 2))
        assert bool(found[3, 1]), "two tokens that have the same place do not fill the window"


def test_chunks_have_no_places():
    odd = TRIL.clone()
    odd[4, 2] = False
    with pytest.raises(ValueError, match="attention of Identity looks at chunks"):
        follow(odd[None, None], [0, 1, 2, 3, 4])
    with pytest.raises(ValueError, match="looks at chunks of 4 tokens"):
        follow(None, [0, 1, 2, 3, 4], attention_chunk_size=4)
