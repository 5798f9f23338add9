"""Labels stand beside the numbers of their prompts, also where prompts were left out."""

import numpy as np
import pytest

from tokinterp.results import with_labels


def test_labels_go_to_prompts_and_tokens(tiny_run):
    names = ["a", "b", "a", "b", "c"]
    run = with_labels(tiny_run, topic=names, right=[True, False, True, True, False])
    lens = run["lens"].to_dataset()
    assert lens["topic"].values.tolist() == [names[n] for n in lens["prompt"].values]
    column = "token_prompt" if "token_prompt" in lens.coords else "prompt"
    assert lens["token_topic"].values.tolist() == [names[n] for n in lens[column].values]
    some = with_labels(tiny_run["lens"].to_dataset().isel(prompt=[4, 1]), topic=names)
    assert some["topic"].values.tolist() == ["c", "b"]
    mean = lens["entropy"].groupby("topic").mean()
    np.testing.assert_allclose(mean.sel(topic="a"), lens["entropy"].isel(prompt=[0, 2]).mean("prompt"))


def test_too_few_too_many_and_taken_names(tiny_run):
    for names in (["a"], ["a"] * 6):
        with pytest.raises(ValueError, match=r"topic=.*give one label for each of the 5 prompts"):
            with_labels(tiny_run, topic=names)
    bare = tiny_run["lens"].to_dataset()
    for names in (["a"] * 4, ["a"] * 6):
        with pytest.raises(ValueError, match=r"topic=.*give one label for each of the 5 prompts"):
            with_labels(bare.isel(prompt=[0, 1]), topic=names)
    with pytest.raises(ValueError, match="there are prompts up to number 4"):
        with_labels(bare.drop_attrs(), topic=["a"] * 4)
    with pytest.raises(ValueError, match=r"entropy=.*something of this name already"):
        with_labels(tiny_run["lens"].to_dataset(), entropy=["a"] * 5)
