"""Blocks whose attention can be looked at: those that the model offers, and what is said of the others."""

from types import SimpleNamespace

import pytest

from tokinterp.attention.massive import shown_blocks


def stand_in(**offered):
    """A model of five blocks that offers some of them."""

    def check(sites):
        if missing := [s for s in sites if s.at not in offered.get("pattern", range(5))]:
            raise ValueError(f"no {missing}")

    return SimpleNamespace(info=SimpleNamespace(n_layers=5), offered=offered, check=check)


def test_all_blocks_are_shown_where_all_are_offered():
    assert shown_blocks(stand_in(pattern=(0, 1, 2, 3, 4))) == ((0, 1, 2, 3, 4), {})


def test_what_is_not_offered_is_named():
    shown, said = shown_blocks(stand_in(pattern=(1, 3)))
    assert shown == (1, 3)
    assert said["blocks_without_pattern"].startswith("0, 2, 4:")


def test_a_model_that_shows_none_is_refused():
    model = stand_in()
    model.check = lambda sites: pytest.fail("asked of no site") if not sites else (_ for _ in ()).throw(ValueError)
    with pytest.raises(ValueError):  # noqa: PT011
        shown_blocks(model)
