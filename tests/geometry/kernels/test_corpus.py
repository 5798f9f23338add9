"""Tables of a large cloud, some rows at a time, are those of loops and of the kernels for small clouds."""

import numpy as np
import pytest
import torch

from tokinterp.geometry.kernels import corpus, membership
from tokinterp.kernels.neighbours import nearest

DRAW = torch.Generator().manual_seed(0)
LABELS = corpus.Labels(
    torch.randint(0, 4, (30,), generator=DRAW), torch.arange(30) % 10, torch.arange(30) // 10, torch.arange(30) // 20
)


@pytest.mark.parametrize("rule", [corpus.Apart(token=True), corpus.Apart(prompt=True), corpus.Apart(document=True),
                                  corpus.Apart(window=2), corpus.Apart(token=True, window=1)])  # fmt: skip
def test_barred_tokens_are_those_of_a_loop(rule):
    rows = torch.tensor([3, 12, 29])
    found = rule.tokens(LABELS, rows, slice(5, 25))
    t, at, p, d = (v.tolist() for v in LABELS)
    for i, r in enumerate(rows.tolist()):
        for j in range(5, 25):
            barred = (
                (rule.token and t[r] == t[j])
                or (rule.prompt and p[r] == p[j])
                or (rule.document and d[r] == d[j])
                or (rule.window > 0 and p[r] == p[j] and abs(at[r] - at[j]) <= rule.window)
            )
            assert bool(found[i, j - 5]) == barred


@pytest.mark.parametrize("rule", [corpus.Apart(token=True), corpus.Apart(prompt=True), corpus.Apart(window=2)])
def test_a_state_is_barred_if_all_tokens_that_have_it_are(rule):
    first = torch.arange(30)
    first[[4, 6]], first[[17, 25]], first[12] = 4, 17, 11  # one prompt near, two prompts, neighbours
    only = corpus.Labels(*(corpus.one_label(v, first) for v in LABELS))
    rows = torch.arange(30)
    found = rule.groups(LABELS, only, corpus.extent(LABELS.position, first), rows, slice(0, 30))
    each = rule.tokens(LABELS, rows, slice(None))
    for g in set(first.tolist()):
        np.testing.assert_array_equal(found[:, g], each[:, first == g].all(1))


def test_members_and_ranks_are_those_of_small_clouds():
    x = torch.randn(25, 3, generator=DRAW)[torch.randint(0, 25, (40,), generator=DRAW)]  # some several times
    near = nearest(x, 8)
    rows, everyone = torch.tensor([0, 7, 39]), torch.ones(40, dtype=torch.bool)
    allowed = torch.arange(40) != rows[:, None]
    layer = corpus.Layer(near.first[0], near.indices[0, near.first[0, rows]])
    lists = membership.neighbour_lists(near.indices, near.first, everyone)
    found = corpus.members([layer], rows, allowed, [2, 8])
    for j, k in enumerate((2, 8)):
        np.testing.assert_allclose(found[0, j], membership.membership(lists, k)[0, rows], atol=1e-6)
    far = corpus.squared_distances(x, rows, near.first[0], everyone, 7)
    centred = x.double() - x.double().mean(0)
    np.testing.assert_array_equal(
        corpus.ranks(far, allowed), membership.rank_rows(centred, near.first[0], everyone)[rows]
    )


def test_tokens_left_out_give_their_places_to_others():
    """Three at distance 0 of which one is barred: of the two places, the other two have one each."""
    x = torch.tensor([[0.0], [0.0], [0.0], [0.0], [1.0]])
    near = nearest(x, 1)
    allowed = torch.tensor([[False, True, False, True, True]])
    layer = corpus.Layer(near.first[0], near.indices[0, :1])
    rows = torch.tensor([0])
    assert corpus.members([layer], rows, allowed, [2])[0, 0].tolist() == [[0.0, 1.0, 0.0, 1.0, 0.0]]
    assert corpus.members([layer], rows, allowed, [3])[0, 0].tolist() == [[0.0, 1.0, 0.0, 1.0, 1.0]]
    assert corpus.members([layer], rows, allowed, [4])[0, 0].isnan().all()


@pytest.mark.slow
def test_local_twonn_is_that_of_scikit_dimension():
    import skdim

    x = torch.randn(300, 3, generator=DRAW) @ torch.randn(3, 20, generator=DRAW)
    near = nearest(x, 60)
    found = corpus.local_twonn(x, near.indices[0, :20], 2**22)
    theirs = skdim.id.TwoNN().fit_pw(x.double().numpy(), n_neighbors=60).dimension_pw_
    np.testing.assert_allclose(found, theirs[:20], rtol=1e-6)
    lacking = near.indices[0, :2].clone()
    lacking[1, -1] = -1
    assert corpus.local_twonn(x, lacking, 2**22).isnan().tolist() == [False, True]


def test_rows_come_in_blocks_of_the_memory():
    assert [(s.start, s.stop) for s in corpus.row_blocks(7, 100, 10, 3000)] == [(0, 3), (3, 6), (6, 7)]
    assert len(list(corpus.row_blocks(7, 100, 10, 1))) == 7
