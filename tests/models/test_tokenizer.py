"""The tokenizer of a folder: where there is none, it is said."""

from __future__ import annotations

import pytest

from tokinterp import load_tokenizer


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no tokenizer"):
        load_tokenizer(tmp_path)
