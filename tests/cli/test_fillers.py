"""The commands on frozen models, and the items that they read."""

import json

import numpy as np
import pytest

import tokinterp as ti
from tokinterp.cli.fillers import read_items
from tokinterp.cli.main import main

pytestmark = pytest.mark.slow


@pytest.fixture
def call(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        return stop.value.code, said.out, said.err

    return run


def test_command_insert(call, tmp_path):
    items = tmp_path / "items.jsonl"
    pairs = [("The sky is", " blue"), ("In the early twentieth", " century"), ("The town has shops, as well", " as")]
    items.write_text("\n".join(json.dumps({"prompt": p, "answer": a}) for p, a in pairs), encoding="utf-8")
    out = tmp_path / "run.zarr"
    code, said, _ = call("fillers", "insert", "bundled", "-o", out, "--items", items, "-k", "2,4", "--decide", 4)
    assert code == 0
    assert "4 tokens of dots (post): accuracy" in said
    assert "verdict on 4 tokens of dots: not shown" in said
    assert "value, placement specificity" in said  # what it rests on
    before = ti.read(out)
    assert set(before.children) == {"insertion", "tests", "interventions", "verdict"}
    asked = ("fillers", "insert", "bundled", "-o", out, "--items", items, "-k", "2", "--decide", 0)
    code, _, error = call(*asked)
    assert code == 2
    assert "is there already: give another name, or --overwrite" in error
    assert ti.read(out).identical(before)
    assert call(*asked, "--overwrite")[0] == 0
    assert set(ti.read(out).children) == {"insertion", "tests"}


def test_command_attention(call, tmp_path):
    code, said, _ = call("fillers", "attention", "bundled", "-o", tmp_path / "a.zarr", "-k", 4, "--limit", 3)
    assert code == 0
    assert "answer -> fillers: mass" in said
    assert "nan" not in said
    run = ti.read(tmp_path / "a.zarr")
    np.testing.assert_allclose(run["attention"]["mass"].sum("key_set"), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("insert", "bundled", "--kind", ".", "-k", "4"), "merges with its neighbours"),
        (("insert", "bundled", "-k", "2,x"), "write numbers"),
        (("insert", "./no-such-model", "--kind", "words"), "the verdict is against random words"),
        (("attention", "bundled", "-k", "0"), "--n-fillers 0: give a whole number of at least 1"),
        (("attention", "bundled", "-k", "3000"), "fillers fit"),
        (("attention", "bundled", "--limit", "0"), "--limit 0: give a whole number of at least 1"),
        (("insert", "./no-such-model", "--decide", "-3"), "--decide -3: give a whole number"),
    ],
)
def test_commands_refuse_in_one_line(call, tmp_path, arguments, message):
    code, _, error = call("fillers", *arguments, "-o", tmp_path / "x.zarr")
    assert code == 2
    assert message in error
    assert [line.startswith("error: ") for line in error.splitlines() if line and "Loading weights" not in line] == [
        True
    ]


def test_items_of_a_file(tmp_path):
    table = tmp_path / "items.csv"
    table.write_text("prompt,answer\nThe sky is, blue\n", encoding="utf-8")
    assert read_items(table) == [("The sky is", " blue")]
    table.write_text("question,answer\nThe sky is, blue\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"items\.csv line 1: no column 'prompt'; .*: write prompt and answer"):
        read_items(table)
    with pytest.raises(ValueError, match=r"read from \.jsonl or \.csv"):
        read_items(tmp_path / "items.txt") if (tmp_path / "items.txt").write_text("x") else None


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"prompt": "a", "answer": "b"}\n{"prompt": ', "a.jsonl line 2: not JSON"),
        ("b.jsonl", b"[1, 2]\n", r"b.jsonl line 1: \[1, 2\]: give an object with texts as prompt and answer"),
        ("c.jsonl", b'{"prompt": "\xe9"}\n', "c.jsonl"),
        ("d.csv", b"prompt,answer\n\xe9,b\n", "d.csv: byte 14 .* is not UTF-8"),
        ("f.jsonl", b'{"prompt": "a", "answer": "b"}\n3\n', "f.jsonl line 2: 3: give an object"),
        ("g.jsonl", b'{"prompt": "a", "answer": null}\n', "g.jsonl line 1: .*: give an object"),
        ("h.jsonl", b"\n", "h.jsonl: no item in it"),
        ("i.csv", b"prompt,answer\n1\n", "i.csv line 2: 1 columns instead of 2"),
        ("e.jsonl", b"[" * 100_000, "e.jsonl line 1: not JSON"),
        ("j.csv", b"prompt,answer\n", "j.csv: no item in it"),
    ],
)
def test_damaged_items_are_named_with_their_file(tmp_path, name, data, message):
    from tokinterp.cli.fillers import read_items

    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_items(tmp_path / name)
