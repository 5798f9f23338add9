"""What a field says of where it is kept."""

import pytest

from tokinterp.run.measurement.fields import KEYS, Field


@pytest.mark.parametrize(
    ("dims", "table"),
    [(("prompt", "layer"), "prompt"), (("token",), "token"), (("span",), "span"), (("layer",), ""), ((), "")],
)
def test_the_first_dimension_says_where_a_field_is_kept(dims, table):
    assert Field(dims, "a number").table == table
    assert table in {*KEYS, ""}
