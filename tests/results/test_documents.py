"""Groups of values that belong together: documents where a result has them, else prompts, else each value."""

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.results.documents import groups_of, groups_of_prompts, with_documents

TOKENS = {"token_prompt": ("token", [0, 0, 1, 2])}


def windows():
    prompts = ti.Prompts.from_ids([[1, 3], [1, 4], [1, 5]])
    prompts.documents = np.array([0, 0, 1])
    return prompts


def test_windows_are_marked_with_their_document():
    ds = xr.Dataset({"x": ("prompt", np.arange(3.0))}, {"prompt": [0, 1, 2], **TOKENS})
    found = with_documents(ds, windows())
    assert found["document"].values.tolist() == [0, 0, 1]
    assert found["token_document"].values.tolist() == [0, 0, 0, 1]
    assert groups_of(found, "prompt")[1] == groups_of(found, "token")[1] == "documents"
    assert groups_of(found["x"], "prompt")[0].tolist() == [0, 0, 1]


def test_spans_of_windows_are_drawn_by_document():
    coords = {"prompt": [0, 1, 2], "span_prompt": ("span", [0, 1, 1, 2])}
    found = with_documents(xr.Dataset({"psi": ("span", np.arange(4.0))}, coords), windows())
    groups, kind = groups_of(found, "span")
    assert (groups.tolist(), kind) == ([0, 0, 0, 1], "documents")


def test_prompts_that_are_no_windows_are_left_as_they_are():
    ds = xr.Dataset({"x": ("prompt", np.arange(3.0))}, {"prompt": [0, 1, 2], **TOKENS})
    assert with_documents(ds, ti.Prompts.from_ids([[1, 3], [1, 4], [1, 5]])) is ds
    groups, kind = groups_of(ds, "token")
    assert (groups.tolist(), kind) == ([0, 0, 1, 2], "prompts")
    groups, kind = groups_of(ds, "prompt")
    assert (groups.tolist(), kind) == ([0, 1, 2], "prompts")


def test_tokens_that_say_their_prompt_are_drawn_by_prompt():
    """As those of `tokinterp.states`, which have no prompts beside them."""
    ds = xr.Dataset({"x": ("token", [0.0, 0.1, 1.0, 1.1, 2.0, 2.1])}, {"prompt": ("token", [0, 0, 1, 1, 2, 2])})
    groups, kind = groups_of(ds, "token")
    assert (groups.tolist(), kind) == ([0, 0, 1, 1, 2, 2], "prompts")
    assert groups_of(with_documents(ds, windows()), "token")[1] == "documents"
    found = ti.summary(ds, "token")
    assert found.attrs["groups"] == "prompts"
    assert float(found["x_groups"]) == 3


def test_groups_of_prompts_by_number_are_their_documents():
    groups, kind = groups_of_prompts(windows(), np.array([2, 0, 1]))
    assert (groups.tolist(), kind) == ([1, 0, 0], "documents")
    alone = ti.Prompts.from_ids([[1, 3], [1, 4], [1, 5]])
    groups, kind = groups_of_prompts(alone, np.array([[2, 0]]))
    assert (groups.tolist(), kind) == ([[2, 0]], "prompts")
