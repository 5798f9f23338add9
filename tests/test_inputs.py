"""Wrong arguments: every public function and class refuses them in one line, or takes and records them."""

import inspect
import re
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from calls import CALLS, World, add_measurements, call, public
from tiny import some_prompts, tiny

import tokinterp as ti
import tokinterp.fillers
from tokinterp.settings import options_of
from tokinterp.settings.kinds import short

UNCALLED = {
    "Corpus": "says nothing of its source before it is read, by tokenizer_metrics",
    "Batch": "made by the stream, never by a user",
    "Items": "made by build_items",
    "Annotated": "made by the readers", "BundledText": "made by bundled_texts", "Question": "made by bundled_questions",
    "Removal": "made by remove", "TokenClasses": "made by token_classes", "HookedLM": "made by wrap", "Prompts":
    "made by from_texts, from_ids and from_file", "Model": "a protocol, has no body", "ModelInfo": "made by wrap",
    "Picture": "made by draw", "Pictures": "made by draw",
    "measure_on_cluster": "needs a cluster; its arguments are those of measure",
}  # fmt: skip
"""Public names without a call of their own here, and why."""
ANY = {
    ("MarkovSource", "transition"): "looked at by what rows add up to",
    ("PerCloud", "estimator"): "any object with fit, or function",
    ("representations.fit", "y"): "ignored, as scikit-learn asks", ("representations.fit_transform", "y"): "ignored",
    ("representations.get_params", "deep"): "ignored",
    ("states", "where"): "of many kinds, see its own tests",
    ("jacobian_space", "where"): "given to states", ("corpus_cloud", "where"): "given to states",
    ("keep_only", "blocks"): "one block is a list of one", ("prompts.__getitem__", "which"): "counts from the end, too",
    ("prompts.vocabulary.special", "ids"): "an array of any shape, in every batch",
}  # fmt: skip
"""Parameters whose values are not looked at, and why."""


class Thing:
    """An object of a class that nobody knows."""


WRONG = {
    "None": None, "NaN": float("nan"), "infinity": float("inf"), "minus one": -1, "zero": 0, "True": True, "half": 1.5,
    "digits": "12", "list of halves": [1.5], "empty list": [], "empty dictionary": {}, "object": Thing(),
    "beyond all numbers": 10**400, "lone surrogate": "a\ud800b", "no such path": "/dev/null/none.txt", "bytes": b"1",
    "dataset": xr.Dataset(), "table": pd.DataFrame({"text": ["a"]}), "class": ti.geometry.Spectrum,
    "dictionary": {"a": 1},
    "array of NaN": np.array([[np.nan]]), "set": {"a"}, "list of None": [None], "list of strings": ["x"],
    "tensor": torch.zeros(2, 2),
}  # fmt: skip
add_measurements(CALLS)


@cache
def world():
    return World()


def test_every_public_name_has_a_call():
    names = {name for name, _ in public()}
    assert len(names) > 170
    assert names - set(CALLS) == set(UNCALLED)
    called = {n.partition(".")[0] for n in CALLS}
    assert not {n for n in UNCALLED if n in called} - {"Prompts"}


SIGNED = {
    "at", "position", "limit", "limits", "min_psi", "offset", "offsets", "penalty", "tag_column", "threshold",
    "token_column", "width", "positions", "keys", "queries", "source",
}  # fmt: skip
"""Parameters that may be negative."""


def allowed(how, name, written):
    """Whether a value that is wrong elsewhere is right for a parameter, by its annotation."""
    many = any(w in written for w in ("Sequence", "Iterable", "list[", "tuple[", "Positions"))
    words = "str" in written or "Path" in written or name == "pipeline"  # of spaCy: a name, or a loaded one
    return {
        "None": "None" in written or "Positions" in written or "Any" in written,
        "minus one": name in SIGNED or "float" in written,
        "zero": "int" in written or "float" in written or "Positions" in written or name == "device",
        "True": "bool" in written,
        "half": "float" in written,
        "digits": words or "Positions" in written,  # the name of a mark
        "no such path": words or "Positions" in written,
        "lone surrogate": "Positions" in written,
        "list of halves": "[float]" in written,
        "empty list": many or "ndarray" in written,
        "empty dictionary": "Mapping" in written or "dict" in written,
        "dictionary": "Mapping" in written or "dict" in written,
        "dataset": "DataTree" in written,
        "list of strings": (many and words) or "ndarray" in written,
        "tensor": "Tensor" in written or "Positions" in written,
        "array of NaN": "ndarray" in written,
    }.get(how, False)


def shows(refusal, wrong):
    """Whether a refusal shows the value, or what it is."""
    shown = [short(wrong)[:20], type(wrong).__name__, *([short(v) for v in wrong] if isinstance(wrong, list) else [])]
    return any(v in refusal for v in shown)


def refusal(function, good, parameter, wrong):
    """What a function says against one wrong argument among good ones; nothing if it takes it."""
    many = [n for n, p in inspect.signature(function).parameters.items() if p.kind is p.VAR_POSITIONAL]
    given = {**good, parameter.name: (wrong,) if parameter.name in many else wrong}
    first = [v for n in many for v in given.pop(n)]
    try:
        function(*first, **given)
    except (ValueError, TypeError, IndexError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.slow
def test_a_wrong_value_is_refused_by_the_name_of_its_parameter(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    function, good = call(name, world())
    faults, looked_at = [], 0
    for parameter in [*inspect.signature(function).parameters.values(), *options_of(function).values()]:
        if parameter.kind is parameter.VAR_KEYWORD or (name, parameter.name) in ANY:
            looked_at += 1
            continue
        written = f"{parameter.annotation}{' None' if parameter.default is None else ''}"
        for how, wrong in WRONG.items():
            if allowed(how, parameter.name, written):
                continue
            said = refusal(function, good, parameter, wrong)
            named = re.search(rf"\b{parameter.name}\b", said) and shows(said, wrong)
            if not named or "\n" in said or len(said) > 700:
                faults.append(f"{parameter.name}={short(wrong)} ({how}; {written}): {said or 'is accepted'}")
            looked_at += 1
    assert not faults, "\n".join([name, *faults])
    assert looked_at or not inspect.signature(function).parameters


def test_an_unknown_argument_is_named_with_what_there_is():
    for name in CALLS:
        function, good = call(name, world())
        if hasattr(getattr(function, "__init__", None) if isinstance(function, type) else function, "__kinds__"):
            many = {n for n, p in inspect.signature(function).parameters.items() if p.kind is p.VAR_POSITIONAL}
            with pytest.raises((TypeError, ValueError), match="nonsense"):
                function(**{k: v for k, v in good.items() if k not in many}, nonsense=1)


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
    for written in inspect.signature(kind).parameters.values():
        parameter = written.name
        for value in (*WRONG.values(), 1, 2, 10**15, False, "special", [1], [2, 4], ["special"], (0.5,), None):
            said = refusal(kind, {}, written, value)
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


def test_what_a_result_does_not_have_is_said_of_the_argument():
    run = ti.measure(
        tiny(), some_prompts([9, 8]), {"c": ti.geometry.Curvature(), "n": ti.geometry.TokenNorms()}, progress=False
    )
    ds = run["c"].to_dataset()
    with pytest.raises(ValueError, match=r"^names='curvatur': no variable 'curvatur': there are curvature, "):
        ti.plots.curves(ds, "curvatur")
    with pytest.raises(ValueError, match=r"^names='curvatur': the result has no such .*did you mean 'curvature'"):
        ti.plots.rows(ds, "curvatur", "layer")
    with pytest.raises(
        ValueError,
        match=r"^ds=a Dataset of shape .*: it is a result of Curvature and has no '.*'; there are curvature,",
    ):
        ti.geometry.plots.imbalance_plane(ds)
    with pytest.raises(ValueError, match=r"results=\{\}: give"):
        ti.concat_models({})
    with pytest.raises(ValueError, match=r"^width=-1.0: give 'column' or 'double', or inches above 0"):
        ti.plots.curves(ds, "curvature", width=-1)
    with pytest.raises(ValueError, match=r"^select=\{'a': 1\}: curvature has no dimension 'a'"):
        ti.plots.curves(ds, "curvature", select={"a": 1})
    with pytest.raises(TypeError, match=r"^other=\{'a': 1\}: "):
        ti.plots.curves(ds, other={"a": 1})


def test_what_is_right_is_taken():
    import numpy as np

    m = ti.lens.LogitLens(layers=np.arange(3), top=np.int64(2), exclude="special")
    assert m.settings()["layers"] == [0, 1, 2]
    assert type(m.settings()["top"]) is int
    assert m.settings()["exclude"] == ["special"]
    assert ti.geometry.Spectrum(layers=range(2)).settings()["layers"] == [0, 1]
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
    "half.jsonl": ('{"text": "a\\ud800b"}\n', r"half.jsonl line 1: a lone surrogate"),
    "empty.csv": ("", r"empty.csv: the first line names no columns"),
    "header.csv": ("text\n", r"path=.*header.csv: no text in it"),
    "empty.txt": ("", r"path=.*empty.txt: no text in it"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_with_its_line(name, tmp_path):
    content, message = FILES[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        ti.Prompts.from_file(tmp_path / name, ti.load_tokenizer())
    assert "\n" not in str(caught.value)


DAMAGED_SPANS = {
    "nope\n": "line 1: not JSON",
    '{"text": "a"}\n{"text": "b", "text": "c"}\n': "line 2: two values of 'text'",
    '{"text": "a\\ud800"}\n': "line 1: a lone surrogate",
    '{"text": 3}\n': "line 1: no text with spans .*text=3: give a string",
    '{"text": "abc", "spans": [{"start": 0.5, "stop": 2}]}\n': "line 1: .*start=0.5: give a whole number",
    '{"text": "abc", "spans": [{"start": "0", "stop": 2}]}\n': "line 1: .*start='0': give a whole number",
    '{"text": "abc", "spans": [{"start": 1, "stop": 9}]}\n': r"line 1: span 1\.\.9 does not lie in the text",
    '{"text": "abc", "spans": {"start": 1}}\n': "line 1: no text with spans",
}


@pytest.mark.parametrize("content", DAMAGED_SPANS)
def test_damaged_spans_are_named_with_their_line(content, tmp_path):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(ValueError, match=f"a.jsonl {DAMAGED_SPANS[content]}"):
        ti.text.read_spans_jsonl(tmp_path / "a.jsonl")


def test_a_lone_surrogate_is_refused_wherever_text_comes_in():
    half = "a\ud800b"
    for take in (
        lambda: ti.Prompts.from_texts([half], ti.load_tokenizer()),
        lambda: ti.Spans.words([half]),
        lambda: ti.Spans.from_records([], [half]),
        lambda: ti.text.remove(half, "articles"),
        lambda: ti.text.find_words(half),
        lambda: ti.behaviour.Item("a", ("b", half), 0),
        lambda: ti.lexicon.patchscope(tiny(), some_prompts([5]), half + "{x}"),
        lambda: ti.sklearn.TokenRepresentations(tiny()).fit([half]),
        lambda: ti.text.build_items(tiny(), [(half, " a")]),
        lambda: ti.text.build_items(tiny(), [("a", " b")], n_fillers=2, kind=half),
    ):
        with pytest.raises((ValueError, TypeError), match="a lone surrogate") as caught:
            take()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-99", "", "hex", "a\0b", 3])
def test_an_unknown_encoding_is_refused(encoding, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"^encoding=.*: give the name of an encoding, such as 'utf-8'"):
        ti.Prompts.from_file(tmp_path / "a.txt", ti.load_tokenizer(), encoding=encoding)


@pytest.mark.slow
def test_a_null_in_a_table_is_named_with_its_record(tmp_path):
    import pyarrow as arrow
    from pyarrow import parquet

    parquet.write_table(arrow.table({"text": ["abc"] * 1500 + [None]}), tmp_path / "nulls.parquet")
    with pytest.raises(ValueError, match=r"nulls.parquet record 1500: 'text' is null"):
        ti.Prompts.from_file(tmp_path / "nulls.parquet", ti.load_tokenizer())


def test_the_name_of_a_measurement_is_a_string():
    with pytest.raises(ValueError, match="measurement name 3 becomes a group"):
        ti.measure(tiny(), some_prompts([9]), {3: ti.geometry.TokenNorms()})
