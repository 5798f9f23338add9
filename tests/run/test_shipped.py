"""Prompts that travel to other processes."""

import numpy as np
import pytest
from tiny import some_prompts

import tokinterp as ti
from tokinterp.run.shipped import Packed, Shipped

TEXTS = ["Straße über den Nil 🙂", "", "ends", "a\ud800b", "x" * 50]


def test_packed_texts_are_the_texts():
    packed = Packed.of(TEXTS)
    assert list(packed) == TEXTS
    assert (len(packed), packed[-1], packed[1:3], packed[np.int64(2)]) == (5, TEXTS[-1], TEXTS[1:3], "ends")
    with pytest.raises(IndexError):
        packed[5]


def test_shipped_prompts_are_the_prompts_and_their_arrays_stay_in_the_file(tmp_path, bundled):
    whole = ti.Prompts.from_texts([t.text[:90] for t in ti.bundled_texts("story")[:3]], bundled)
    marked = ti.text.mark(whole[[2, 0]], first=[[0, 1], [0, 1]])
    for prompts in (whole, marked, some_prompts([5, 3])):
        shipped = Shipped(prompts, tmp_path / "new" / "run.zarr")
        assert not [k for k, v in vars(shipped.bare).items() if isinstance(v, np.ndarray | tuple | list)]
        found = shipped.prompts()
        assert type(found.token_ids.base) is np.memmap
        del found.__dict__["hash"]
        assert found.hash == prompts.hash
        for i in range(len(prompts)):
            assert found.text(i) == prompts.text(i)
            np.testing.assert_array_equal(found.offsets(i), prompts.offsets(i))
        with pytest.raises(ValueError, match="read-only"):
            found.token_ids[0] = 1
        shipped.remove()
        assert not list((tmp_path / "new").iterdir())
    with pytest.raises(FileNotFoundError, match="a worker needs the file system on which the store is"):
        shipped.prompts()


def test_a_file_of_other_prompts_is_refused(tmp_path):
    shipped = Shipped(some_prompts([5, 3]), tmp_path / "run.zarr")
    shipped.file.write_bytes(shipped.file.read_bytes()[:-1])
    with pytest.raises(RuntimeError, match=r"has \d+ bytes instead of \d+"):
        shipped.prompts()
