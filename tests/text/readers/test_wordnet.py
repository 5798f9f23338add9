"""Lemmas by synset: tables, variants, nltk where it is, clear errors where it is not."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from tokinterp.text import read_wordnet

TABLE = 'lemma\tsynset\tdefinition\nsea_lion\t1-n\ta "seal\nseal\t1-n\tb\nriver\t2-n\tc\nseal\t1-n\tagain\n'


@pytest.fixture
def file(tmp_path):
    (tmp_path / "wordnet.tsv").write_text(TABLE)
    return tmp_path / "wordnet.tsv"


def nltk(monkeypatch, synsets):
    """Put a module in the place of nltk."""
    corpus, package = ModuleType("nltk.corpus"), ModuleType("nltk")

    def every():
        if synsets is None:
            raise LookupError("Resource wordnet not found.")
        return iter(synsets)

    corpus.wordnet = SimpleNamespace(all_synsets=every)
    package.corpus = corpus
    monkeypatch.setitem(sys.modules, "nltk", package)
    monkeypatch.setitem(sys.modules, "nltk.corpus", corpus)


def test_lemmas_of_a_table_each_once_with_spaces(file):
    assert read_wordnet(file, least=1) == {"1-n": [" sea lion", " seal"], "2-n": [" river"]}
    assert list(read_wordnet(file, least=2)) == ["1-n"]
    assert read_wordnet(file, least=1, variants=True)["2-n"] == ["river", " river", "river ", " river "]


def test_lemmas_of_nltk(monkeypatch):
    names = {"eng": ["dog", "domestic_dog"], "fra": ["chien"]}
    nltk(monkeypatch, [SimpleNamespace(name=lambda: "dog.n.01", lemma_names=lambda lang: names[lang])])
    assert read_wordnet(least=2) == {"dog.n.01": [" dog", " domestic dog"]}
    assert read_wordnet(least=1, lang="fra") == {"dog.n.01": [" chien"]}


def test_nothing_is_downloaded(monkeypatch):
    nltk(monkeypatch, None)
    with pytest.raises(ImportError, match="nltk has no data of WordNet here: give file="):
        read_wordnet()
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(ImportError, match="nltk is not installed: give file="):
        read_wordnet()


def test_other_tables_are_refused(file, tmp_path):
    with pytest.raises(ValueError, match=r"least=9: no synset of .* the largest has 2"):
        read_wordnet(file, least=9)
    (tmp_path / "a.tsv").write_text("lemma\tid\nx\ty\n")
    with pytest.raises(ValueError, match=r"a\.tsv line 1: no column 'synset'; there are lemma, id"):
        read_wordnet(tmp_path / "a.tsv")
    (tmp_path / "b.tsv").write_text("lemma\tsynset\nx\n")
    with pytest.raises(ValueError, match=r"b\.tsv line 2: 1 columns instead of 2"):
        read_wordnet(tmp_path / "b.tsv")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_wordnet(tmp_path / "c.tsv")
