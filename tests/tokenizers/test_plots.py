"""The page of tokenizers names the words that cost most, and says nothing of blocks."""

import re

import tokinterp as ti
from tokinterp.tokenizers.plots import worst_words


def test_the_page_has_the_words_that_cost_most_and_no_blocks(tmp_path):
    tok = ti.load_tokenizer()
    texts = {"en": ["The <b>Zugspitze</b>, the Matterhorn!"], "de": ["Der Großglockner."]}
    ds = ti.tokenizers.tokenizer_overview({"one": tok, "t<o>": tok}, texts, worst=3)
    table = worst_words(ds)
    assert "&lt;b&gt;Zugspitze&lt;/b&gt;," in table
    assert "<b>" not in table
    assert "t&lt;o&gt;" in table
    first = ds.isel(tokenizer=0, place=0)
    word, n = str(first["word"].values), int(first["n_tokens"])
    assert word == "<b>Zugspitze</b>,"
    assert f"en: {n} × 1" in table
    assert len(re.findall("<tr>", table)) == 1 + 3
    page = ti.report(ds, tmp_path / "a.html").read_text(encoding="utf-8")
    assert "Words that cost most" in page
    assert "blocks, d_model" not in page
    assert "<b>Zugspitze" not in page
