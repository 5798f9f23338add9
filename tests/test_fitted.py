"""Files of fits: what was written comes back bit for bit, and a damaged or foreign file is refused by name."""

import pytest
import torch

from tokinterp.fitted import check_finite, check_shapes, digest_of, load_tensors, read_note, save_tensors

KIND = "example 1"


@pytest.fixture
def place(tmp_path):
    return tmp_path / "fit.safetensors"


def test_bits_and_facts_come_back(place):
    tensors = {"w": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), "n": torch.arange(4)}
    digest = save_tensors(place, tensors, KIND, {"layers": [0, 1]})
    facts, found = load_tensors(place, KIND, "example", digest=digest)
    assert facts == {"layers": [0, 1]}
    assert all(torch.equal(found[k], tensors[k]) for k in tensors)
    assert read_note(place, KIND, "example")["digest"] == digest


def test_names_types_shapes_and_facts_are_in_the_digest():
    a = torch.zeros(4)
    every = [{"x": a}, {"y": a}, {"x": a.double()}, {"x": a.view(2, 2)}, {"x": a.int()}, {"x": a + 1}]
    marks = [digest_of(t) for t in every] + [digest_of({"x": a}, {"n": n}) for n in (1, 2)]
    assert len(set(marks)) == len(marks)


def test_damaged_foreign_and_missing_files_are_refused(place):
    save_tensors(place, {"w": torch.ones(64)}, KIND, {})
    with pytest.raises(ValueError, match="holds no other: 'example 1', not 'other 1'"):
        load_tensors(place, "other 1", "other")
    with pytest.raises(ValueError, match="its numbers or facts are not those that were written"):
        load_tensors(place, KIND, "example", digest="0")
    data = bytearray(place.read_bytes())
    data[-1] ^= 1
    place.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        load_tensors(place, KIND, "example")
    place.write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match="is damaged, or no example"):
        load_tensors(place, KIND, "example")
    place.unlink()
    with pytest.raises(FileNotFoundError, match="no example at"):
        load_tensors(place, KIND, "example")


def test_a_failed_fit_is_not_written(place):
    bad = {"w": torch.tensor([1.0, torch.nan]), "ok": torch.ones(1)}
    with pytest.raises(ValueError, match="NaN or infinite numbers in w: the fit failed"):
        save_tensors(place, bad, KIND, {})
    assert not place.exists()
    save_tensors(place, bad, KIND, {}, finite=False)
    with pytest.raises(ValueError, match="cannot be used: NaN or infinite numbers in w"):
        load_tensors(place, KIND, "example")
    many = {str(k): torch.tensor(torch.inf) for k in range(6)}
    with pytest.raises(ValueError, match="in 0, 1, 2, 3 and 2 more: out"):
        check_finite(many, "x", "out")


def test_tensors_of_another_shape_are_named():
    check_shapes({"w": torch.ones(2, 3)}, {"w": (2, 3)}, "file")
    for tensors, message in (
        ({}, "w is missing"), ({"w": torch.ones(3)}, r"float32 \(3,\)"), ({"w": torch.ones(2, 3).int()}, "int32"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            check_shapes(tensors, {"w": (2, 3)}, "file")
