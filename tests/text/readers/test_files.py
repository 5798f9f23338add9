"""Files of texts: every kind and packing, wrong encodings, what is missing or broken."""

import bz2
import csv
import gzip
import io
import json
import lzma

import pytest
from text_helpers import byte_tokenizer

from tokinterp.text import Prompts, read_texts

RECORDS = [{"text": t, "id": n} for n, t in enumerate(["One\nline café.", 'Two, "quoted"', "Three 日本"])]


PLAIN = [r["text"] for r in RECORDS]


def written(folder, kind):
    stream = io.StringIO()
    if kind == "jsonl":
        stream.write("".join(json.dumps(r) + "\n" for r in RECORDS))
    elif kind == "json":
        json.dump(PLAIN, stream)
    else:
        rows = csv.DictWriter(stream, ["id", "text"], delimiter="\t" if kind == "tsv" else ",")
        rows.writeheader()
        rows.writerows(RECORDS)
    file = folder / f"texts.{kind}"
    file.write_bytes(stream.getvalue().encode())
    return file


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
@pytest.mark.parametrize(("packed", "opener"), [("", open), (".gz", gzip.open), (".xz", lzma.open), (".bz2", bz2.open)])
def test_text_files(tmp_path, kind, packed, opener):
    plain = written(tmp_path, kind)
    file = plain.with_name(plain.name + packed)
    data = plain.read_bytes()
    with opener(file, "wb") as stream:
        stream.write(data)
    assert read_texts(file) == PLAIN
    assert read_texts(str(file), limit=2) == PLAIN[:2]
    assert read_texts([file, file]) == PLAIN * 2
    if packed:
        file.write_bytes(file.read_bytes()[:-9])
        with pytest.raises(ValueError, match=rf"texts.*not a whole \{packed} file"):
            read_texts(file)


def test_plain_text_files(tmp_path):
    (tmp_path / "b.txt").write_bytes("\ufeffone\r\n\ntwo café\n".encode())
    (tmp_path / "a.txt").write_text("first\n")
    assert read_texts(tmp_path / "b.txt") == ["one\r\n\ntwo café\n"]
    assert read_texts(tmp_path) == ["first\n", "one\r\n\ntwo café\n"]
    prompts = Prompts.from_file(tmp_path / "b.txt", byte_tokenizer(), per_line=True)
    assert [prompts.text(i) for i in range(len(prompts))] == ["one", "two café"]
    assert prompts.documents.tolist() == [0, 2]
    assert prompts.dropped.tolist() == [1]
    with pytest.raises(ValueError, match="text 1 is empty"):
        Prompts.from_file(tmp_path / "b.txt", byte_tokenizer(), per_line=True, on_empty="error")


def test_tables_and_datasets(tmp_path, extras):
    import datasets

    data = datasets.Dataset.from_list(RECORDS)
    data.to_parquet(tmp_path / "texts.parquet")
    data.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=data, test=data.select([1])).save_to_disk(tmp_path / "splits")
    assert read_texts(tmp_path / "texts.parquet") == PLAIN
    assert read_texts(tmp_path / "saved") == read_texts(tmp_path / "splits") == read_texts(data) == PLAIN
    assert read_texts(tmp_path / "splits", split="test") == PLAIN[1:2]
    with pytest.raises(ValueError, match="no split 'dev'; there are train, test"):
        read_texts(tmp_path / "splits", split="dev")
    for place in ("texts.parquet", "saved"):
        with pytest.raises(ValueError, match="no column 'body'; there are text, id"):
            read_texts(tmp_path / place, field="body")
    (tmp_path / "texts.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="not a whole parquet file"):
        read_texts(tmp_path / "texts.parquet")


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".txt.gz"])
def test_wrong_encoding_names_file_byte_and_way_out(tmp_path, suffix):
    file = tmp_path / ("bad" + suffix)
    data = b'{"text": "plain"}\n{"text": "caf' + b'\xe9"}\n'
    file.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    with pytest.raises(ValueError, match=rf"bad{suffix}: byte {data.index(0xE9)} \(0xe9\) is not UTF-8.*encoding="):
        read_texts(file, field="text" if suffix == ".jsonl" else '{"text": "plain"}')
    if suffix == ".jsonl":
        assert read_texts(file, encoding="latin-1") == ["plain", "café"]


def test_missing_and_broken_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"body": "y"}\n')
    with pytest.raises(ValueError, match=r"line 2: no field 'text'; there are body.*field="):
        read_texts(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(ValueError, match=r"b.jsonl line 2: not JSON"):
        read_texts(tmp_path / "b.jsonl")
    (tmp_path / "c.json").write_text('{"text": 3}')
    with pytest.raises(ValueError, match="holds dict, not a list"):
        read_texts(tmp_path / "c.json")
    (tmp_path / "d.docx").write_text("x")
    with pytest.raises(ValueError, match=r"unknown type '\.docx': the types are .txt"):
        read_texts(tmp_path / "d.docx")
    (tmp_path / "e.json").write_text("[3]")
    with pytest.raises(ValueError, match="entry 0: 'text' is int"):
        read_texts(tmp_path / "e.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a saved dataset nor a folder"):
        read_texts(tmp_path / "empty")
    for name in (tmp_path / "no.txt", "no/such/folder/x", str(tmp_path / "no.csv"), "lost.docx"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            read_texts(name)
    with pytest.raises(ValueError, match="limit=0"):
        read_texts(tmp_path / "a.jsonl", limit=0)


def test_csv_limit_of_python_is_left_alone(tmp_path):
    file = tmp_path / "long.csv"
    file.write_text("text\n" + "x" * 2001)
    before = csv.field_size_limit(2000)  # whatever another library has made of it
    try:
        assert len(read_texts(file)[0]) == 2001
        assert csv.field_size_limit() == 2000
    finally:
        csv.field_size_limit(before)
