"""Wrong changes to what is said of tokenizers without a model."""

REACHABILITY = "tokinterp/tokenizers/reachability.py"
CATEGORIES = "tokinterp/tokenizers/categories.py"
OF_CATEGORIES = "tests/tokenizers/test_categories.py::"
TEST = "tests/tokenizers/test_reachability.py::"
MUTANTS = [
    ("reachability: one other token is enough", REACHABILITY, "if list(reencoded) == [i]:", "if len(reencoded) == 1:",
     f"{TEST}test_planted_tokens_have_their_categories"),
    ("reachability: unknown word no special", REACHABILITY, "*([] if unknown is None else [int(unknown)])}", "}",
     f"{TEST}test_pieces_of_words_are_asked_for_inside_words"),
    ("reachability: first prefix only", REACHABILITY, "for prefix in PREFIXES:", "for prefix in PREFIXES[:1]:",
     f"{TEST}test_a_space_before_the_text_hides_no_token"),
    ("reachability: prefix left on", REACHABILITY, "rest = all_of_it[len(before) :]", "rest = all_of_it[len(before) - 1 :]",
     f"{TEST}test_a_space_before_the_text_hides_no_token"),
    ("reachability: replacement characters decoded", REACHABILITY, "if not _whole(piece):", "if not piece:",
     f"{TEST}test_the_bundled_tokenizer_has_the_known_counts"),
    ("reachability: gaps are tokens", REACHABILITY, "ids[there].tolist()", "ids.tolist()",
     f"{TEST}test_slow_tokenizers_and_ids_without_tokens"),
    ("categories: script of the space too", CATEGORIES, '(names[1:] if place == "spaced" else names)', "names",
     f"{OF_CATEGORIES}test_tokens_of_every_class"),
    ("categories: control before fragments", CATEGORIES, 'if "�" in text:', 'if text == "�":',
     f"{OF_CATEGORIES}test_tokens_of_every_class"),
    ("categories: share of all ids", CATEGORIES, "np.where(real, n / there.sum(), np.nan)", "n / len(ids)",
     f"{OF_CATEGORIES}test_shares_are_of_ids_that_have_a_token"),
    ("categories: every use counts as an id", CATEGORIES, "(uses > 0).astype(float)", "uses.astype(float) + 0",
     f"{OF_CATEGORIES}test_used_shares_are_those_of_a_count"),
    ("categories: any first word is a script", CATEGORIES, "if script in SCRIPTS else", "if script else",
     f"{OF_CATEGORIES}test_tokens_of_every_class"),
]  # fmt: skip
