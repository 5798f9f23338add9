"""The report is one file that shows the numbers of the run, and nothing in a run can break out of it."""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
from drawn import small

import tokinterp as ti
from tokinterp import plots
from tokinterp.plots import draw
from tokinterp.results.report import cell, lead, problems, report
from tokinterp.results.tables import Column, layer_table, number, summary_text

EVIL = "</script><script>alert('x')</script><img src=http://x.y/z>&amp;\u2028"


class Page(HTMLParser):
    """Tags, texts and the embedded data of a page."""

    def __init__(self, path):
        super().__init__()
        self.text, self.tags, self.inside = path.read_text(encoding="utf-8"), [], []
        self.strings, self.scripts = [], []
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if self.inside and self.inside[-1] == "script":
            self.scripts.append(data)
        elif not self.inside or self.inside[-1] != "style":
            self.strings.append(data)

    @property
    def data(self):
        return json.loads(self.scripts[0])

    @property
    def shown(self):
        return " ".join(self.strings)


@pytest.fixture(scope="module")
def page(tiny_run, tmp_path_factory):
    return Page(report(tiny_run, tmp_path_factory.mktemp("report") / "deep" / "report.html"))


@pytest.fixture(scope="module")
def lean(tiny_run):
    """The values of single tokens alone, which give a page without figures in no time."""
    ds = tiny_run["lens"].to_dataset()
    ds = ds[[n for n in ds.data_vars if "token" in ds[n].dims]]
    del ds.attrs["measurement"]
    return ds


def floats(packed):
    return np.frombuffer(base64.b64decode(packed), "<f4")


def test_nothing_is_loaded_from_elsewhere(page):
    for tag, attrs in page.tags:
        for key in ("src", "href", "data", "action", "srcset", "poster"):
            assert attrs.get(key, "data:").startswith(("data:", "#")), (tag, attrs)
        assert tag not in ("link", "iframe", "object", "embed", "base")
    assert "url(" not in page.text.split("</style>")[0]
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert not re.search(r"<!--\w+-->", page.text)  # every part of the template was filled in


def test_figures_have_a_description_and_both_modes_of_light_are_served(page):
    images = [a for t, a in page.tags if t == "img"]
    assert len(images) == 8  # dimension 2, lens 4, spectrum 2
    assert all(len(a["alt"]) > 20 for a in images)
    assert "prefers-color-scheme: dark" in page.text


def test_type_in_pictures_has_one_size(page):
    """A narrow picture is not blown up to the width of a wide one."""
    for width, data in re.findall(r'<img width="(\d+)" src="data:image/svg\+xml;base64,([^"]*)"', page.text):
        points = re.search(rb'<svg[^>]* width="([\d.]+)pt"', base64.b64decode(data))
        assert points
        assert int(width) / float(points[1]) == pytest.approx(104 / 72, rel=0.01)
    assert page.text.count("<img width=") == page.text.count("<img ") > 1


def test_table_has_means_with_their_intervals(page, tiny_run):
    lens = tiny_run["lens"].to_dataset()
    means = ti.summary(lens)
    for variant in ("normed", "raw"):
        one = means.sel(layer=3, variant=variant)
        assert number(float(one["cross_entropy"])) in page.shown
        low, high = (number(float(x)) for x in one["cross_entropy_interval"])
        assert f"{low} to {high}" in page.shown


def test_table_says_over_how_many_prompts_where_not_all(tiny_run, tmp_path):
    ds = tiny_run["dimension"].to_dataset().drop_dims("token")
    ds["dimension"] = ds["dimension"].copy(
        data=np.where(ds["prompt"].values[:, None, None] < 2, np.nan, ds["dimension"])
    )
    shown = Page(report(ds, tmp_path / "a.html")).shown
    assert "n=3" in shown
    columns = layer_table(ds)[2]
    assert [c.label for c in columns if c.name == "dimension"] == ["scale 2", "scale 4", "scale 8"]
    assert [c.label for c in columns if c.name == "dimension" and c.first] == ["scale 4"]


def test_variables_of_tokens_say_what_their_numbers_are_of(tmp_path):
    data = Page(report(small("abc"), tmp_path / "a.html")).data
    assert [v["name"] for v in data["variables"]] == [f"result: delta (offset {n})" for n in (0, -1)]


def test_values_of_tokens_are_those_of_the_run(page, tiny_run):
    data = page.data
    names = [v["name"] for v in data["variables"]]
    place = names.index("lens: next-token cross-entropy (raw)")
    variable = data["variables"][place]
    assert (variable["units"], variable["layers"]) == ("nat", [0, 1, 2, 3])
    lens, dimension = (tiny_run[n].to_dataset() for n in ("lens", "dimension"))
    for p in data["prompts"]:
        rows = lens.isel(token=np.flatnonzero(lens["token_prompt"] == p["number"])).sortby("position")
        assert p["tokens"] == rows["text"].values.tolist()
        assert p["ids"] == rows["token_id"].values.tolist()
        assert p["positions"] == rows["position"].values.tolist()
        np.testing.assert_array_equal(
            floats(p["values"][place]).reshape(4, -1), rows["token_cross_entropy"].sel(variant="raw").values.T
        )
        local = dimension.isel(token=np.flatnonzero(dimension["token_prompt"] == p["number"])).sortby("position")
        mine = floats(p["values"][names.index("dimension: local dimension")])
        np.testing.assert_array_equal(mine.reshape(4, -1), local["local_dimension"].values.T)
        ranks = p["answers"]["lens"]["ranks"]
        answers = floats(p["answers"]["lens"]["values"]).reshape(2, 4, ranks, -1)
        every = rows["top_id"].sel(variant="normed").transpose("layer", "rank", "token")
        assert ranks == every.sizes["rank"]
        np.testing.assert_array_equal(answers[0], every)
        assert {str(int(i)) for i in answers.ravel()} <= data["names"].keys()
    assert not [n for n in names if "massive" in n]  # a list of findings is not a text


def test_nothing_in_a_run_can_break_out_of_the_page(lean, tmp_path):
    lens = lean.copy(deep=True)
    text = lens["text"].values.copy()
    text[3] = EVIL
    lens = lens.assign_coords(text=("token", text))
    lens.attrs.update(model=EVIL, parameters=json.dumps({"a": EVIL}))
    lens["depth_of_all"] = ("layer", np.arange(4.0), {"long_name": EVIL, "units": EVIL})
    tree = xr.DataTree.from_dict({f"a{EVIL[1:9]}".replace("/", ""): lens})
    page = Page(report(tree, tmp_path / "a.html", title=EVIL))
    assert [t for t, _ in page.tags].count("script") == 2
    assert not [a for t, a in page.tags if t == "img" and not a["src"].startswith("data:")]
    assert page.data["prompts"][0]["tokens"][3] == EVIL
    assert "alert('x')" in page.shown  # as text


def test_prompts_that_were_left_out_are_named(tiny_run, lean, tmp_path):
    prompts = tiny_run["prompts"].to_dataset().copy(deep=True)
    prompts["first_nonfinite_layer"][2] = 1
    lean = lean.assign_attrs(measurement="LensOfOneToken")
    tree = xr.DataTree.from_dict({"prompts": prompts, "lens": lean})
    shown = Page(report(tree, tmp_path / "a.html")).shown
    assert "1 of 5 prompts" in shown
    assert "2 (from layer 1)" in shown


def test_provenance_is_there(page, tiny_run):
    for key in ("model", "weights", "fingerprint", "prompts", "tokenizer", "created"):
        assert str(tiny_run["lens"].attrs[key]) in page.shown
    assert '"variants"' in page.shown


@pytest.mark.parametrize(("options", "expected"), [({"max_prompts": 2}, 2), ({"max_megabytes": 1e-6}, 1)])
def test_size_is_bounded_and_the_page_says_so(lean, tmp_path, options, expected):
    page = Page(report(lean, tmp_path / "a.html", **options))
    assert len(page.data["prompts"]) == expected
    assert f"The first {expected} of 5 prompts" in page.shown
    assert ("to keep this page below" in page.shown) == ("max_megabytes" in options)


@pytest.mark.slow
def test_a_stored_run_gives_the_same_page_twice(tiny_run, tmp_path):
    ds = tiny_run["spectrum"].to_dataset()
    store = ti.write(xr.DataTree.from_dict({"/": xr.Dataset(attrs=ds.attrs), "spectrum": ds}), tmp_path / "run.zarr")
    first, second = (report(store, tmp_path / f"{n}.html", title="t").read_bytes() for n in "ab")
    assert first == second


def test_a_result_without_tokens_hides_the_texts(tiny_run, tmp_path):
    ds = tiny_run["lens"].to_dataset().drop_dims("token")[["n_positions"]]
    del ds.attrs["measurement"]
    page = Page(report(ds, tmp_path / "a.html"))
    assert page.data["prompts"] == []
    assert "hidden" in next(a for t, a in page.tags if a.get("id") == "texts")
    assert "kept no values of single tokens" in page.shown


def test_prompts_of_another_run_are_refused(tiny_run, tiny_folder, tmp_path):
    model = ti.load_model(tiny_folder, device="cpu")
    other = ti.Prompts.from_texts(["Another text."], model)
    with pytest.raises(ValueError, match="are not those of the run"):
        ti.report(tiny_run, tmp_path / "a.html", prompts=other)
    with pytest.raises(ValueError, match="nothing to report"):
        ti.report(xr.DataTree(), tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


# -- what was received ----------------------------------------------------------------------------------------
RUNS = "<img src=x onerror=alert(1)>"


def hashes(text, tag):
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
    return {f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in found}


def policy_of(text):
    (content,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    return {kind: set(allowed) for kind, *allowed in (part.split() for part in content.split("; "))}


def test_only_the_scripts_and_styles_of_the_page_itself_are_allowed(page, tmp_path):
    policy = policy_of(page.text)
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == {"'none'"}
    assert policy["script-src"] == hashes(page.text, "script")
    assert len(policy["script-src"]) == 1
    assert policy["style-src"] >= hashes(page.text, "style")
    assert "unsafe" not in page.text
    assert not [a for _, a in page.tags if "style" in a or any(k.startswith("on") for k in a)]
    file = plots.tokens(small(["a", RUNS, "b"]), "psi", title=RUNS).save(tmp_path / "a.html", title=RUNS)
    alone = Page(file)
    assert policy_of(alone.text)["style-src"] == hashes(alone.text, "style")
    assert "script-src" not in policy_of(alone.text)
    assert not [t for t, a in alone.tags if t in ("img", "script") or "style" in a]


def hostile(run):
    """Every string of a result, and every number that a page shows, is markup."""
    tree = run.copy(deep=True)
    tree.attrs |= {"n_layers": RUNS, "d_model": RUNS, "model": RUNS, RUNS: RUNS, "created": RUNS, "device": RUNS}
    nodes = {n.path: n.to_dataset(inherit=False) for n in tree.subtree}
    table = nodes["/prompts"]
    n = table.sizes["prompt"]
    nodes["/prompts"] = table.assign_coords(prompt=("prompt", np.array([RUNS] * n, object)))
    nodes["/prompts"]["first_nonfinite_layer"][:] = 1
    other = xr.Dataset({"x": (("block",), [1.0, 2.0])}, {"block": np.array([RUNS, "b"], object)}, {"measurement": RUNS})
    other["x"].attrs = {"long_name": RUNS, "units": RUNS}
    nodes["/" + RUNS] = other
    for v in nodes["/lens"].variables.values():
        v.attrs = {"long_name": RUNS, "units": RUNS}
    return xr.DataTree.from_dict(nodes)


@pytest.mark.slow
def test_no_value_of_a_result_becomes_markup(tiny_run, tmp_path):
    shown = Page(report(hostile(tiny_run), tmp_path / "a.html", title=RUNS + "<!--data-->"))
    assert [a["src"][:10] for t, a in shown.tags if t == "img"] == ["data:image"] * sum(
        t == "img" for t, _ in shown.tags
    )
    assert shown.shown.count(RUNS) > 10
    assert len(shown.scripts) == 2
    planted = small("abc")
    planted["psi"].attrs["long_name"] = planted["delta"].attrs["long_name"] = RUNS
    named = plots.tokens(planted, "psi")
    assert "<img" not in named
    assert html.escape(RUNS) in named


@pytest.mark.slow
def test_report_table_and_captions_say_over_how_many_documents(tiny_run, tmp_path):
    ds = tiny_run["lens"].to_dataset()
    n = ds.sizes["prompt"]
    for number_, said in ((3, "95 % interval over 3 documents"), (2, "no interval: fewer than 3 documents")):
        windows = ds.assign_coords(document=("prompt", np.arange(n) % number_, {"long_name": "document", "units": "1"}))
        shown = Page(report(windows, tmp_path / f"{number_}.html")).shown
        assert f"mean over prompts, {said}" in shown
        assert f"Mean over prompts, {said}." in next(iter(draw(windows))).caption
        assert ("no interval" in shown) == (number_ == 2)
        assert said in summary_text(xr.DataTree.from_dict({"/lens": windows}))
        assert "nan to nan" not in shown
        assert "– to –" not in shown


def test_cells_say_what_there_is_no_number_or_interval_for():
    interval, count = np.array([[1.0, np.nan, 0.0], [3.0, np.nan, 0.0]]), np.array([4, 2, 0])
    c = Column("x", "", "x", "x", True, np.array([2.0, 5.0, np.nan]), interval, count)
    assert [cell(c, i, 4) for i in range(3)] == ["2<span>1 to 3</span>", "5<span>no interval n=2</span>", "–"]


def test_prompts_left_out_are_named_with_their_layers_and_the_lead_says_sizes():
    facts = {"n_tokens": ("prompt", [4, 6, 9]), "first_nonfinite_layer": ("prompt", [-1, 0, 2])}
    tree = xr.DataTree.from_dict({"p": xr.Dataset(facts, {"prompt": [5, 7, 8]}, {"n_layers": 3, "d_model": 16})})
    assert "<b>2 of 3 prompts</b>" in problems(tree)
    assert "prompt 7 (from layer 0), 8 (from layer 2)" in problems(tree)
    assert "3 blocks, d_model 16" in lead(tree, ["m"])
    assert "3 prompts, 19 tokens" in lead(tree, ["m"])


def test_long_runs_keep_short_titles_and_narrow_tables(tmp_path):
    from tokinterp.results.report import MOST_COLUMNS, html_table

    names = [f"m{n}" for n in range(9)]
    value = xr.Dataset({"x": ("layer", [1.0, 2.0])}, {"layer": [0, 1]}, {"measurement": "M", "model": "a model"})
    run = xr.DataTree.from_dict({f"/{n}": value for n in names})
    page = Page(report(run, tmp_path / "a.html"))
    assert "<title>a model: m0, m1, m2, m3, m4, and 4 more</title>" in page.text
    wide = xr.Dataset({"x": (("layer", "k"), np.ones((2, 30)))}, {"layer": [0, 1], "k": range(30)})
    table = html_table(wide)
    assert table.count("<td>") == 2 * MOST_COLUMNS
    assert f"the first {MOST_COLUMNS} columns" in table
    assert "the first" not in html_table(wide.isel(k=slice(3)))


def test_sources_stand_by_the_result_and_the_text_opens_with_values_that_vary(page, tmp_path):
    assert "nostalgebraist 2020" in page.shown
    coords = {"position": ("token", range(4)), "token_prompt": ("token", [0] * 4), "text": ("token", list("abcd"))}
    ds = xr.Dataset({"few": ("token", [1.0, 2.0, np.nan, np.nan]), "alike": ("token", [0.0] * 4),
                     "varied": ("token", [0.0, 1.0, 2.0, 3.0])}, coords)  # fmt: skip
    data = Page(report(ds, tmp_path / "a.html")).data
    assert data["variables"][data["start"]]["name"] == "result: varied"
