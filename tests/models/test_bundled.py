"""The bundled model by name."""

import pytest

import tokinterp as ti


@pytest.mark.slow
def test_the_bundled_model_by_name():
    named = ti.load_model("bundled", device="cpu")
    assert named.info == ti.load_model(device="cpu").info
    assert ti.load_tokenizer("bundled")("The Nile")["input_ids"] == named.tokenizer("The Nile")["input_ids"]
