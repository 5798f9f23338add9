"""What the library says of a parameter is said of the option."""

from pathlib import Path

import pytest

from tokinterp.cli.fit import fit
from tokinterp.cli.measure import measure
from tokinterp.cli.measurements import measurements
from tokinterp.cli.refusals import about_option, is_usage
from tokinterp.cli.vocabulary import vocabulary


@pytest.mark.parametrize(
    ("run", "given", "message", "said"),
    [
        (measure, {}, "max_tokens=0: give", "--max-tokens 0: give"),
        (measure, {}, "store='a': give", "--output 'a': give"),
        (measure, {}, "path=x.txt: no such file", "TEXTS x.txt: no such file"),
        (measure, {}, "measurement=lenz: unknown", "--measurement lenz: unknown"),
        (measurements, {}, "measurement=lenz: unknown", "NAME lenz: unknown"),
        (fit, {}, "memory=-1.0: give", "--max-gigabytes -1.0: give"),
        (vocabulary, {"run": Path("a.zarr")}, "no result at a.zarr", "RUN a.zarr: no result at a.zarr"),
        (measure, {"measurement": ["lens", "dots"]}, "no format 'dots'", "--measurement dots: no format 'dots'"),
        (measure, {}, 'texts[0]: long: give max_tokens, or on_long="window"',
         "TEXTS long: give --max-tokens, or --on-long window"),
        (measure, {}, "path=a: no column: name one with field=", "TEXTS a: no column: name one with --field"),
        (measure, {"field": "text"}, "the text is long", "the text is long"),
        (measure, {"field": "ex"}, "the text is long", "the text is long"),
        (measure, {"device": ""}, "nothing. And", "nothing. And"),
        (measure, {"model": "a"}, "--output a is there", "--output a is there"),
        (measure, {"model": "a"}, "NAME=a: nothing", "MODEL a: NAME=a: nothing"),
    ],
)  # fmt: skip
def test_a_refusal_is_said_of_the_option_that_it_is_about(run, given, message, said):
    assert about_option(message, run, given) == said


@pytest.mark.parametrize(
    ("error", "message", "usage"),
    [
        (ValueError("a"), "--limit 0: give", True),
        (FileNotFoundError("a"), "TEXTS x.txt: no such file", True),
        (ValueError("a"), "all 3 prompts give NaN", False),
        (OSError("a"), "--output r.zarr: No space left on device", False),
        (RuntimeError("a"), "--output r.zarr: another process", False),
    ],
)
def test_a_command_that_cannot_be_carried_out_is_told_from_work_that_failed(error, message, usage):
    assert is_usage(error, message, measure) == usage
