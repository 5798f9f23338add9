"""The tests marked gpu, in the files that have some; warnings of other versions than the pinned ones do not fail."""

from __future__ import annotations

from importlib.util import find_spec
from xml.etree import ElementTree

import pytest

from .job import Job
from .lists import ROOT, device_tests, missing

TINY = ("tests/geometry/test_norms.py", "-k", "cpu")


def run(job: Job) -> None:
    """Count what passed, failed and could not be imported.

    Raises
    ------
    RuntimeError
        If a test failed, or none ran.
    """
    report = job.work / "tests.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    which = list(TINY) if job.tiny else [*device_tests(), "-m", "gpu"]
    spread = ["-n", "4"] if find_spec("xdist") and not job.tiny else []
    command = [
        "-q", "--rootdir", str(ROOT), "-W", "default", "-p", "no:cacheprovider", "--junitxml", str(report),
        "--continue-on-collection-errors", "-o", "junit_logging=no", *spread, *which,
    ]  # fmt: skip
    job.sizes = {"tests": " ".join(which), "missing": missing()}
    code = pytest.main(command)
    if not report.exists():
        raise RuntimeError(f"pytest ended with code {code} and no report")
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    counts = {k: int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped")}
    bad = [
        f"{case.get('classname')}::{case.get('name')}: {(case[0].get('message') or '')[:200]}"
        for case in suite.iter("testcase")
        if len(case) and case[0].tag in ("failure", "error")
    ]
    job.row("marked gpu" if not job.tiny else "a few on the CPU", **counts, failed=bad)
    if bad or not counts["tests"]:
        raise RuntimeError(f"{len(bad)} of {counts['tests']} tests failed: {bad[0] if bad else 'none was found'}")
