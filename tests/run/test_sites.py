"""Names and numbers of sites."""

import pytest
from tiny import tiny

from tokinterp.run.sites import SITES
from tokinterp.run.sites import Site as S


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("at", [0, 1, 11])
def test_site_names_are_read_back(name, at):
    site = S(name, at)
    assert S.parse(f"{name}.{at}") == site
    assert S.parse(site.lens_name) == site


def test_site_numbers_follow_hidden_states():
    assert S("resid", 0).lens_name == "blocks.0.hook_resid_pre"
    assert S("resid", 4).lens_name == "blocks.3.hook_resid_post"
    assert S("pattern", 4).lens_name == "blocks.4.attn.hook_pattern"
    assert S.parse("blocks.3.hook_resid_pre") == S("resid", 3)
    ordered = [S("resid", 1), S("pattern", 1), S("attn_out", 1), S("mlp_out", 1), S("resid", 2)]
    assert sorted([ordered[n] for n in (3, 0, 4, 2, 1)], key=lambda s: s.depth) == ordered


@pytest.mark.parametrize("text", ["resid", "resid.x", "blocks.1.hook_z", "hidden.3", "resid.-1", ""])
def test_no_site(text):
    with pytest.raises(ValueError, match=r"names no site|^name=.*: give one of"):
        S.parse(text)


def test_site_errors_name_the_value_and_what_there_is():
    with pytest.raises(ValueError, match="name='hidden': give one of 'resid', 'resid_mid'"):
        S("hidden", 1)
    with pytest.raises(ValueError, match="layer -1: numbers start at 0 and never count from the end"):
        S("resid", -1)
    with pytest.raises(ValueError, match=r"mlp_out at block 3: tiny-llama has blocks 0 to 2"):
        S("mlp_out", 3).check(tiny().info)
