"""Settings of the training of probes: by name, as given, and refused."""

import json
from dataclasses import fields, replace

import pytest

from tokinterp.erasure.probe_settings import FEUCHT2024, NAMED, ProbeSettings, choose_settings


def test_settings_by_name_and_as_they_are():
    assert choose_settings("default") == ProbeSettings()
    assert choose_settings("feucht2024") is FEUCHT2024
    own = ProbeSettings(lr=0.5)
    assert choose_settings(own) is own
    with pytest.raises(ValueError, match="settings='feucht': give 'default' or 'feucht2024'"):
        choose_settings("feucht")
    for name in ("lr", "epochs", "rows"):
        with pytest.raises(ValueError, match=f"{name}=0: give a "):
            replace(own, **{name: 0})


def test_the_published_settings_are_those_of_the_paper():
    facts = {f.name: getattr(FEUCHT2024, f.name) for f in fields(FEUCHT2024)}
    assert (facts["lr"], facts["epochs"], facts["documents"], facts["accumulate"]) == (0.1, 16, 4, 30)
    assert [facts[n] for n in ("standardise", "zeros", "decay", "bos", "all_types")] == [
        False,
        False,
        False,
        True,
        True,
    ]


def test_facts_hold_every_setting_as_json():
    for settings in NAMED.values():
        facts = settings.facts()
        assert json.loads(json.dumps(facts)) == facts
        assert set(facts) == {f.name for f in fields(ProbeSettings)}
