"""What options of the command line may be."""

import pytest

from tokinterp.cli.options import parse_layers


def test_parse_layers():
    assert parse_layers("0,4,8-10") == [0, 4, 8, 9, 10]
    for bad in ("", "a", "-1", "3-", "1.5", "²", "٣", "5-2", "0,5-2", "0-9999999", "1_0"):
        with pytest.raises(ValueError, match="--layers"):
            parse_layers(bad)


def test_share_of_the_command_line(monkeypatch):
    from tokinterp.cli.options import parse_share

    assert parse_share("1/4") == (1, 4)
    for bad in ("4/4", "1", "-1/4", "a/b", "1/0", ""):
        with pytest.raises(ValueError, match=r"--share .*write I/N"):
            parse_share(bad)
    with pytest.raises(ValueError, match="no task of a SLURM job array"):
        parse_share("slurm")
    for name, value in (("ID", 7), ("MIN", 5), ("MAX", 8), ("COUNT", 4)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert parse_share("slurm") == (2, 4)
    for name, value in (("MIN", 1), ("MAX", 10), ("STEP", 3)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert parse_share("slurm") == (2, 4)
    monkeypatch.setenv("SLURM_ARRAY_TASK_STEP", "1")
    with pytest.raises(ValueError, match="4 tasks from 1 to 10: use one without gaps"):
        parse_share("slurm")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MAX", "9")
    with pytest.raises(ValueError, match="use one without gaps"):
        parse_share("slurm")
