"""The command that compares tokenizers: a table, a page, and what is refused."""

import pytest

from tokinterp.cli.main import main
from tokinterp.models.bundled import bundled_folder


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["tokenizers", *map(str, arguments)])
    return end.value.code


def test_a_table_and_a_page_of_two_tokenizers_and_languages(tmp_path, capsys):
    for lang, text in (("en", "The sea is blue.\nA door.\n"), ("ru", "Море синее.\nДверь.\n")):
        (tmp_path / f"{lang}.txt").write_text(text, encoding="utf-8")
    page = tmp_path / "page.html"
    files = [x for lang in ("en", "ru") for x in ("--texts", f"{tmp_path}/{lang}.txt")]
    code = run("bundled", bundled_folder() / "tokenizer.json", *files, "--base-lang", "en", "-o", page)
    out, err = capsys.readouterr()
    assert code == 0, err
    assert [line.split()[:2] for line in out.splitlines()[1:5]] == [
        ["bundled", "en"], ["bundled", "ru"], ["tokenizer.json", "en"], ["tokenizer.json", "ru"]
    ]  # fmt: skip
    premium = [line.split()[-1] for line in out.splitlines()[1:5]]
    assert premium[0] == "1.000"
    assert float(premium[1]) > 2
    assert premium[:2] == premium[2:]
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/svg+xml") > 10
    assert "Море" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bundled", "--base-lang", "fr"], "--base-lang fr"),
        (["bundled", "--texts", "en=a.txt", "--texts", "en=b.txt"], "a language twice"),
        (["/nowhere/tokenizer.json"], "nowhere"),
    ],
)
def test_what_cannot_be_carried_out_is_one_line(tmp_path, capsys, arguments, said):
    assert run(*arguments, "-o", tmp_path / "page.html") in (1, 2)
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
