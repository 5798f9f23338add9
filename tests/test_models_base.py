"""The identity of a model: equal only for models that compute the same."""

from dataclasses import replace

import pytest
from tiny import byte_tokenizer, tiny, tiny_lm

import tokinterp as ti
from tokinterp.models.base import current


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


def test_a_model_is_looked_at_as_it_is_now():
    model = ti.wrap(tiny_lm(), byte_tokenizer(), id="m")
    before = model.info.identity
    next(iter(model.lm.parameters())).data[0, 0] += 1
    assert model.info.identity == before
    assert current(model).identity != before
    assert model.info.identity == current(model).identity


def test_what_cannot_look_has_the_info_that_it_was_given():
    from planted import PlantedModel

    model = PlantedModel()
    assert current(model) is model.info
