"""What the process is set to is put aside for a computation, and is there again afterwards."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from tokinterp.kernels.state import evaluating, neutral, passing, seeded


def settings():
    return (
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"),
        torch.is_inference_mode_enabled(), np.geterr(), torch.get_default_device().type,
    )  # fmt: skip


def test_inside_everything_is_as_in_a_fresh_process():
    fresh = settings()
    inside = (fresh[0], False, *fresh[2:])  # no gradients
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), np.errstate(all="raise"):
            hostile = settings()
            assert hostile != fresh
            with neutral():
                assert settings() == inside
            assert settings() == hostile
            with pytest.raises(KeyError), neutral():
                raise KeyError
            assert settings() == hostile
    finally:
        torch.set_default_dtype(torch.float32)
    assert settings() == fresh


def test_modules_are_put_back_each_into_its_own_mode():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout().eval()))
    before = [m.training for m in net.modules()]
    with passing(net, None):
        assert not any(m.training for m in net.modules())
        assert not torch.is_grad_enabled()
    assert [m.training for m in net.modules()] == before


def test_a_module_that_two_threads_share_trains_again_when_the_last_is_done():
    net, inside, out = nn.Dropout(), threading.Event(), threading.Event()

    def work():
        with evaluating(net):
            inside.set()
            out.wait(10)

    thread = threading.Thread(target=work)
    with evaluating(net):
        thread.start()
        assert inside.wait(10)
    assert not net.training
    out.set()
    thread.join()
    assert net.training


def test_random_numbers_begin_at_the_seed_and_go_on_outside():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with seeded(1):
        one = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with seeded(1):
        assert torch.equal(torch.rand(2), one)
    with seeded(2):
        assert not torch.equal(torch.rand(2), one)
