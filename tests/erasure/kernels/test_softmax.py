"""The gradient of softmax probes is that of autograd, and readings are log-softmax and rank, whatever the blocks."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokinterp.erasure.kernels import softmax as kernel

torch.set_num_threads(1)


# -- kernels --------------------------------------------------------------------------------------------------
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(1, 20), st.sampled_from([1, 3, 7, 20]), st.booleans())
def test_gradient_by_hand_is_that_of_autograd_whatever_the_blocks(seed, n, block, factored):
    g = torch.Generator().manual_seed(seed)
    classes, m, d = 7, 4, 5
    x, target = torch.randn(n, d, generator=g), torch.randint(-1, classes, (n,), generator=g)
    head = torch.randn(classes, m, generator=g)
    w = torch.randn(m if factored else classes, d, generator=g, requires_grad=True)
    logits = x @ ((head @ w) if factored else w).T
    known = int((target >= 0).sum())
    loss = torch.nn.functional.cross_entropy(logits, target, ignore_index=-1, reduction="sum") / max(1, known)
    (expected,) = torch.autograd.grad(loss, w)
    scratch = kernel.Scratch(classes, n, x.device, memory=4 * classes * block)
    assert scratch.rows == min(n, block)
    start = torch.randn(expected.shape, generator=g)
    for add in (False, True):
        found = start.clone()
        with torch.no_grad():
            if factored:
                value = kernel.factored_gradient(x, w, head, target, found, scratch, add=add)
            else:
                value = kernel.softmax_gradient(x, w, target, found, scratch, add=add)
        torch.testing.assert_close(found, expected + start * add, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(value, loss.detach(), atol=2e-6, rtol=1e-5)


def test_reading_is_log_softmax_and_rank_whatever_the_blocks():
    g = torch.Generator().manual_seed(0)
    x, w, b = torch.randn(33, 6, generator=g), torch.randn(11, 6, generator=g), torch.randn(11, generator=g)
    target = torch.randint(-1, 11, (33,), generator=g)
    logits = x @ w.T + b
    expected = torch.log_softmax(logits, 1).gather(1, target.clamp_min(0)[:, None])[:, 0]
    order = logits.argsort(1, descending=True).argsort(1).gather(1, target.clamp_min(0)[:, None])[:, 0]
    for block in (1, 4, 33):
        found = kernel.read_targets(x, w, target, b, kernel.Scratch(11, 33, x.device, memory=44 * block))
        torch.testing.assert_close(found.log_prob, expected.masked_fill(target < 0, torch.nan), equal_nan=True)
        assert torch.equal(found.rank, order.masked_fill(target < 0, -1))
