"""Wrong changes to what is said of tokenizers without a model."""

REACHABILITY = "tokinterp/tokenizers/reachability.py"
CATEGORIES = "tokinterp/tokenizers/categories.py"
OF_CATEGORIES = "tests/tokenizers/test_categories.py::"
TEST = "tests/tokenizers/test_reachability.py::"
METRICS, COUNTING, USAGE = (f"tokinterp/tokenizers/{n}.py" for n in ("metrics", "counting", "usage"))
OF_METRICS, OF_COUNTING = (f"tests/tokenizers/test_{n}.py::" for n in ("metrics", "counting"))
ENCODING, OF_ENCODING = "tokinterp/tokenizers/encoding.py", "tests/tokenizers/test_encoding.py::"
INFERENCE, MORPHOLOGY, COMPOUNDS, MIXTURE = (
    f"tokinterp/tokenizers/{n}.py" for n in ("inference", "morphology", "compounds", "mixture")
)
OF_INFERENCE, OF_MORPHOLOGY, OF_COMPOUNDS, OF_MIXTURE = (
    f"tests/tokenizers/test_{n}.py::" for n in ("inference", "morphology", "compounds", "mixture")
)
COVERS, OF_BYTES, BYTES = (f"tokinterp/tokenizers/bytes{n}.py" for n in ("_covers", "_tokens", ""))
TEST_COVERS, TEST_OF_BYTES, TEST_BYTES = (f"tests/tokenizers/test_bytes{n}.py::" for n in ("_covers", "_tokens", ""))
CONTINUATIONS = "tokinterp/models/continuations.py"
TEST_CONTINUATIONS = "tests/models/test_continuations.py::"
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
    ("metrics: groups of one language only", COUNTING, "np.add.at(s, group, values)", "np.add.at(s, group[::-1], values)",
     f"{OF_METRICS}test_ratios_are_those_of_a_plain_count"),
    ("metrics: parity over all texts", COUNTING, "np.add.at(out.parity[k, 1], group[both], 1)",
     "np.add.at(out.parity[k, 1], group[both], lengths[base][both])", f"{OF_METRICS}test_ratios_are_those_of_a_plain_count"),
    ("metrics: words without their space", ENCODING, "lead + p for p in others", "p for p in others",
     f"{OF_ENCODING}test_tokens_of_the_pieces_are_those_of_the_texts"),
    ("encoding: borders are not shown by value", ENCODING, "if not any(_ACROSS.search(", "if any(_ACROSS.search(",
     f"{OF_ENCODING}test_an_entry_over_a_space_makes_texts_be_encoded_whole"),
    ("encoding: no text is compared", ENCODING, "raise Mixed(f", "print(f",
     f"{OF_ENCODING}test_a_text_whose_pieces_have_other_tokens_is_found_and_all_are_encoded_whole"),
    ("encoding: pieces together though they may hide", ENCODING, "if known and len(begins) == len(group) and begins[0] == 0:", "if begins.size >= len(group):",
     f"{OF_ENCODING}test_tokens_of_the_pieces_are_those_of_the_texts"),
    ("encoding: each piece counts for one fold", COUNTING, "np.repeat(fold, per_text) * kinds", "fold[0] * kinds",
     f"{OF_METRICS}test_how_tokens_are_used_is_that_of_a_plain_count"),
    ("metrics: every shard counts all", COUNTING, "if number % shards == shard:", "if number % shards <= shard:",
     f"{OF_COUNTING}test_same_numbers_in_any_batches_and_shares"),
    ("metrics: ranks from the rarest", USAGE, "np.sort(np.asarray(counts, np.float64))[::-1]",
     "np.sort(np.asarray(counts, np.float64))", f"{OF_METRICS}test_how_tokens_are_used_is_that_of_a_plain_count"),
    ("metrics: premium of what is unknown", METRICS, "return bool(max(lost) <= most)", "return bool(min(lost) <= most)",
     f"{OF_METRICS}test_unknown_words_are_counted_by_characters"),
    ("metrics: nsl of the base itself", METRICS, '_sum(cells, (base, *k[1:]), "tokens").sum())', '_sum(cells, k, "tokens").sum())',
     f"{OF_METRICS}test_ratios_are_those_of_a_plain_count"),
    ("inference: merges by place", INFERENCE, "rank, _ = min(pairs)", "rank, _ = min(pairs, key=lambda p: (p[0] > len(ranks), p[1]))",
     f"{OF_INFERENCE}test_merges_are_those_of_the_library"),
    ("inference: shortest suffix", INFERENCE, "starts = range(max(0, at - self.longest), at)",
     "starts = range(at - 1, max(0, at - self.longest) - 1, -1)", f"{OF_INFERENCE}test_every_way_on_a_word_made_for_it"),
    ("morphology: the space is a character", MORPHOLOGY, "made = {place - before for place in inner_places(cut)} - {0}",
     "made = inner_places(cut)", f"{OF_MORPHOLOGY}test_marks_of_spaces_and_pieces_are_no_characters"),
    ("morphology: tokens themselves count", MORPHOLOGY, "not in inference.pieces and all(", "not in () and all(",
     f"{OF_MORPHOLOGY}test_boundaries_of_planted_words"),
    ("morphology: kinds together", MORPHOLOGY, "(np.array(list(kinds)) == kind)", "(np.array(list(kinds)) != '')",
     f"{OF_MORPHOLOGY}test_chunkability_and_its_correlation"),
    ("compounds: one boundary is enough", COMPOUNDS, "met == len(parts) - 1", "met >= 1",
     f"{OF_COMPOUNDS}test_labels_of_planted_compounds"),
    ("mixture: merges as rare as possible", MIXTURE, "counts[pair] - counts[p])", "counts[p] - counts[pair])",
     f"{OF_MIXTURE}test_the_program_by_hand"),
    ("mixture: old pairs stay", MIXTURE, "now[gone] = now[gone] - counts[w]", "now[gone] = now[gone] + 0 * counts[w]",
     f"{OF_MIXTURE}test_counts_are_those_of_a_plain_merge"),
    ("bytes: what is no encoding is counted", COVERS, "found += weight * (naive - np.bincount(self.first[bad], p[bad], END + 1))",
     "found += weight * naive", f"{TEST_COVERS}test_mass_on_what_is_no_encoding_is_rejected_and_the_sum_rule_holds"),
    ("bytes: only the usual encoding covers", COVERS, "mine = float(found.sum())", "found, mine = found * 0, 0.0",
     f"{TEST_COVERS}test_the_toy_of_two_letters"),
    ("bytes: one byte late in a token", COVERS, "following = self.tokens.table[o.ids, at - o.node.at]",
     "following = self.tokens.table[o.ids, at - o.node.at - 1]", f"{TEST_COVERS}test_a_perfect_token_model_gives_the_source_for_any_dictionary"),
    ("bytes: a node forgets what led to it", COVERS, "self.fresh[node] = o.total + float(own[0])",
     "self.fresh[node] = float(own[0])",
     f"{TEST_COVERS}test_a_perfect_token_model_gives_the_source_for_any_dictionary"),
    ("bytes: every sequence of tokens is an encoding", OF_BYTES, "known[before, i] = part[0] == own if n == 1 else",
     "known[before, i] = True if n == 1 else", f"{TEST_OF_BYTES}test_only_what_the_tokenizer_itself_gives_is_an_encoding"),
    ("bytes: tokens that end inside a character are none", OF_BYTES, "return [data + end for end in ends if _whole(data + end)]",
     "return []", f"{TEST_OF_BYTES}test_tokens_that_end_inside_a_character_are_judged_by_what_may_follow"),
    ("bytes: a border anywhere", OF_BYTES, "apart = not self.pairs[data[at - 1], data[at]]", "apart = True",
     f"{TEST_OF_BYTES}test_a_border_is_where_no_token_reaches_over"),
    ("bytes: average with equal weights", BYTES, "prob[-1], naive[-1] = np.einsum(\"m,mib->ib\", share, prob[:-1])",
     "prob[-1], naive[-1] = np.einsum(\"m,mib->ib\", share * 0 + 0.5, prob[:-1])",
     f"{TEST_BYTES}test_two_models_of_different_tokenizers_are_averaged_byte_by_byte"),
    ("bytes: inside and between exchanged", BYTES, "for k, at in enumerate((~inside, inside)):",
     "for k, at in enumerate((inside, ~inside)):", f"{TEST_BYTES}test_along_a_text_bytes_add_up_to_the_text"),
    ("continuations: padding is seen", CONTINUATIONS, "mask = place >= most - start[:, None]", "mask = place >= 0 * start[:, None]",
     f"{TEST_CONTINUATIONS}test_cached_beginnings_give_what_whole_sequences_give"),
    ("continuations: places begin anew", CONTINUATIONS, "start[:, None] + place[:width], past)", "0 * start[:, None] + place[:width], past)",
     f"{TEST_CONTINUATIONS}test_cached_beginnings_give_what_whole_sequences_give"),
    ("continuations: no cache is tried", CONTINUATIONS, "return bool((found - known).abs().max() <= tolerance * known.abs().max())",
     "return True", f"{TEST_CONTINUATIONS}test_a_model_whose_cache_is_wrong_is_run_whole"),
]  # fmt: skip
