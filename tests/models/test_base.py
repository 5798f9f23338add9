"""The identity of a model: equal only for models that compute the same."""

from dataclasses import replace

import pytest
from tiny import tiny


@pytest.mark.parametrize("name", ["config", "state", "hooks"])
def test_whatever_decides_numbers_decides_the_identity(name):
    info = tiny().info
    assert replace(info, facts={**info.facts, name: "other"}).identity != info.identity
    assert replace(info, weights="other").identity != info.identity


def test_names_and_places_decide_nothing():
    info = tiny().info
    assert (
        replace(info, id="x", revision="y", device="cuda:3", facts={**info.facts, "more": 1}).identity == info.identity
    )
