"""Wrong arguments: every public function and class refuses them in one line that names the parameter."""

import importlib
import inspect

import pandas as pd
import pytest
import xarray as xr
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp import settings

SPACES = [importlib.import_module(f"tokinterp{name}") for name in ("", ".edits", ".plots", ".text", ".fillers")]
RETURNED = {
    "Annotated", "Batch", "BundledText", "Cases", "Items", "KnockOut", "Lexicon", "Measurement", "Model", "ModelInfo",
    "Prompts", "Question", "Removal", "SiteEdit", "Spans", "TokenClasses", "TokenProbes", "TokenRepresentations",
    "TokenSpans", "Vocabulary", "select_positions",
}  # fmt: skip
"""What the package itself makes and calls (or, as estimators of scikit-learn must, checks in ``fit``)."""
FREE = {
    "client", "conditions", "data", "demonstrations", "device_map", "edits", "estimator", "expected", "first", "keys",
    "lm", "measurements", "model_or_tokenizer", "obj", "path", "pipeline", "policy", "positions", "queries",
    "questions", "records", "results", "second", "shuffled", "streaming", "tokenizer", "trunks", "y",
}  # fmt: skip
"""Parameters that take many kinds of objects; their functions look at them themselves."""
LOOKED_AT = {("Prompts", "texts"), ("read_out", "ds")}
SIGNED = {
    "at",
    "position",
    "limit",
    "limits",
    "min_psi",
    "offset",
    "offsets",
    "penalty",
    "tag_column",
    "threshold",
    "token_column",
    "width",
}
WRONG = {
    "NaN": float("nan"), "inf": float("inf"), "object": object(), "list of halves": [1.5], "True": True, "text": "12",
    "minus one": -1, "table": pd.DataFrame({"text": ["a"]}), "dataset": xr.Dataset(), "class": ti.Spectrum,
    "bytes": b"1", "half": 0.5,
}  # fmt: skip


def public():
    """Every function and class of the public namespaces, once."""
    seen = {}
    for space in SPACES:
        for name in getattr(space, "__all__", None) or [
            n
            for n, v in vars(space).items()
            if not n.startswith("_") and getattr(v, "__module__", "") == space.__name__
        ]:
            value = getattr(space, name)
            if callable(value) and value.__module__.startswith("tokinterp"):
                seen[id(value)] = (name, value)
    return sorted(seen.values(), key=lambda pair: (pair[1].__module__, pair[0]))


def kinds_of(value):
    return getattr(value.__init__ if isinstance(value, type) else value, "__kinds__", None)


def annotations(value):
    parameters = inspect.signature(value.__init__ if isinstance(value, type) else value).parameters
    return {n: str(p.annotation) for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def test_every_public_name_checks_its_arguments():
    unchecked = [name for name, value in public() if kinds_of(value) is None and name not in RETURNED]
    assert not unchecked, "decorate these with settings.checked"
    assert len(public()) > 150


def refusal(function, *args, **options):
    """What a function says against its arguments; nothing if it takes them."""
    try:
        function(*args, **options)
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


def allowed(how, name, written):
    """Whether a value that is wrong elsewhere is right for a parameter, by its annotation."""
    return {
        "True": "bool" in written,
        "text": "str" in written or "Path" in written or name in ("device", "dtype"),
        "minus one": name in SIGNED or "float" in written,
        "half": "float" in written,
        "list of halves": any(w in written for w in ("[float]", "Sequence[str]"))
        or name == "texts",  # read as texts later
        "dataset": "Dataset" in written or written == "Other",
    }.get(how, False)


@pytest.mark.parametrize(("name", "value"), public(), ids=[f"{v.__module__}.{n}" for n, v in public()])
def test_wrong_values_are_refused_in_a_line_that_names_the_parameter(name, value):
    kinds = kinds_of(value)
    if kinds is None:
        assert name in RETURNED
        return
    for parameter, written in annotations(value).items():
        kind = kinds.get(parameter)
        if parameter == "self" or parameter in FREE or kind is None or (name, parameter) in LOOKED_AT:
            continue
        assert kind is not settings.anything, f"{parameter}: {written} is not checked"
        for how, wrong in WRONG.items():
            if allowed(how, parameter, written):
                continue
            said = refusal(kind, parameter, wrong)
            assert said, f"{name}({parameter}={settings.short(wrong)}), {written}, is accepted"
            assert said.startswith(f"{parameter}="), said
            assert "\n" not in said, said
            assert len(said) < 600, said


def plainly_made():
    """Measurements that need no argument."""
    for name, value in public():
        if isinstance(value, type) and issubclass(value, ti.Measurement) and value is not ti.Measurement:
            parameters = inspect.signature(value).parameters.values()
            if all(p.default is not p.empty for p in parameters):
                yield pytest.param(value, id=name)


@pytest.mark.parametrize("kind", list(plainly_made()))
def test_a_setting_is_refused_by_the_constructor_or_recorded(kind):
    taken = 0
    for parameter in inspect.signature(kind).parameters:
        for value in (*WRONG.values(), 1, 2, 10**15, False, "special", [1], [2, 4], ["special"], (0.5,), None):
            said = refusal(kind, **{parameter: value})
            if said:
                assert "\n" not in said
                assert parameter in said
                continue
            kept = kind(**{parameter: value}).settings()[parameter]
            given = list(value) if isinstance(value, tuple) else value
            assert kept in (given, [given]) or (given is None and kept is not None), parameter
            taken += 1
    assert taken
    with pytest.raises(TypeError, match=r"has no 'layer_s'.*it takes "):
        kind(layer_s=[1])


def test_what_is_right_is_taken():
    import numpy as np

    m = ti.LogitLens(layers=np.arange(3), top=np.int64(2), exclude="special")
    assert m.settings()["layers"] == [0, 1, 2]
    assert type(m.settings()["top"]) is int
    assert m.settings()["exclude"] == ["special"]
    assert ti.Spectrum(layers=range(2)).settings()["layers"] == [0, 1]
    for texts in (["a b"], ("a b",), np.array(["a b"]), pd.Series(["a b"]), (t for t in ["a b"])):
        assert len(ti.Prompts.from_texts(texts, ti.load_tokenizer(), progress=False)) == 1


@pytest.mark.parametrize(
    ("texts", "way"),
    [
        (pd.DataFrame({"text": ["a"], "n": [1]}), r"df\['text'\]"),
        (pd.DataFrame({"body": ["a"]}), r"df\['body'\]"),
        ({"a": "one", "b": "two"}, r"texts\['a'\]"),
        ("one", r"\[text\]"),
        (b"one", r"\[text\]"),
        ([["one"]], r"text 0 is list"),
        (pd.Series(["a", None]), "text 1 is"),
        (pd.Series([1.5]), "text 0 is float"),
        ({"one", "two"}, "no order"),
        (xr.Dataset(), "one column of it"),
        (5, "give a list of texts"),
    ],
)
def test_what_only_holds_texts_says_how_to_get_at_them(texts, way):
    with pytest.raises((TypeError, ValueError), match=way) as caught:
        ti.Prompts.from_texts(texts, ti.load_tokenizer())
    assert str(caught.value).startswith("texts")


FILES = {
    "unclosed.csv": ('text\n"abc\nmore\nlast\n', r"unclosed.csv line 4: .*quote is not closed"),
    "twice.csv": ("text,text\na,b\n", r"twice.csv line 1: 2 columns 'text'"),
    "short.csv": ("a,text\n1\n", r"short.csv line 2: 1 columns instead of 2"),
    "other.csv": ("id;text\n1;a\n", r"other.csv line 1: no column 'text'; there are id;text"),
    "bad.jsonl": ('{"text": "a"}\nnope\n', r"bad.jsonl line 2: not JSON"),
    "bad.json": ('[{"text": "a"},\n{"text"}]', r"bad.json line 2: not JSON"),
    "deep.jsonl": ('{"text":' + "[" * 100_000 + "}\n", r"deep.jsonl line 1: not JSON"),
    "number.jsonl": ('{"text": 3}\n', r"number.jsonl line 1: 'text' is int"),
    "missing.jsonl": ('{"body": "a"}\n', r"missing.jsonl line 1: no field 'text'; there are body"),
    "nul.csv": ("text\na\0b\n", r"nul.csv line 2: a NUL character"),
    "twice.jsonl": ('{"text": "a", "text": "b"}\n', r"twice.jsonl line 1: two values of 'text'"),
    "twice.json": ('[{"text": "a", "text": "b"}]\n', r"twice.json: two values of 'text'"),
    "null.jsonl": ('{"text": "a"}\n{"text": null}\n', r"null.jsonl line 2: 'text' is null: leave the record out"),
    "empty.csv": ("", r"empty.csv: the first line names no columns"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_with_its_line(name, tmp_path):
    content, message = FILES[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        ti.Prompts.from_file(tmp_path / name, ti.load_tokenizer())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-99", "", "hex", "a\0b", 3])
def test_an_unknown_encoding_is_refused(encoding, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"^encoding=.*: give the name of an encoding, such as 'utf-8'"):
        ti.Prompts.from_file(tmp_path / "a.txt", ti.load_tokenizer(), encoding=encoding)


def test_a_null_in_a_table_is_named_with_its_record(tmp_path):
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(arrow.table({"text": ["abc"] * 1500 + [None]}), tmp_path / "nulls.parquet")
    with pytest.raises(ValueError, match=r"nulls.parquet record 1500: 'text' is null"):
        ti.Prompts.from_file(tmp_path / "nulls.parquet", ti.load_tokenizer())


def test_the_name_of_a_measurement_is_a_string():
    with pytest.raises(ValueError, match="measurement name 3 becomes a group"):
        ti.measure(tiny(), some_prompts([9]), {3: ti.TokenNorms()})


def test_a_text_far_longer_than_what_is_kept_is_told(monkeypatch, caplog):
    monkeypatch.setattr("tokinterp.text.tokenise.LONG_TEXT", 100)
    ti.Prompts.from_texts(["once " * 30], ti.load_tokenizer(), max_tokens=8)
    assert "150 characters is tokenised as a whole, though max_tokens=8" in caplog.text
