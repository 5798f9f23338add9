"""Every source of a run is cited once, with what it defines."""

import tokinterp as ti


def test_sources_are_those_of_the_variables(tiny_run):
    lines = ti.cite(tiny_run).splitlines()
    sources = {
        v.attrs["references"]
        for name in tiny_run.children
        for v in tiny_run[name].to_dataset().variables.values()
        if "references" in v.attrs
    }
    assert len(lines) == len(sources) > 3
    assert {source for source in sources if not any(line.startswith(f"{source}: ") for line in lines)} == set()
    (line,) = [line for line in lines if "Levina" in line]
    assert "dimension_mle" in line
    assert "entropy" not in line
    assert ti.cite(tiny_run["lens"].to_dataset()[["entropy"]]) == "no variable of this result names a source"
