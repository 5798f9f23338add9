"""Wrong changes to experiments and figures: controls, nulls, seeds, signs of what is said, which result is drawn."""

PARTS = "experiments/microscope_parts.py"
RECORD = "experiments/record.py"
SUMMARY = "experiments/microscope_summary.py"
ERASURE, FIGURES = "experiments/erasure_summary.py", "figures/__main__.py"
LOSS = "tokinterp/measurements/removal_loss.py"
BESIDE = "tests/test_experiments_record.py"
SAID = "tests/test_experiments_erasure_summary.py"
ENTROPY = "tests/test_entropy.py"

MUTANTS = [
    ("random deletion is the deletion itself", PARTS, "in (first, anywhere)]", "in (first, first)]", BESIDE),
    ("shuffled text of a removal is the text", PARTS, "prompts = shuffle_words(prompts, settings.seed)",
     "prompts = prompts[:]", BESIDE),
    ("deletion within the class is anywhere", PARTS, 'settings.seed + i, "class")', "settings.seed + i)", BESIDE),
    ("every text has the same random deletion", PARTS, "anywhere = [words.remove_random(r, settings.seed + i)",
     "anywhere = [words.remove_random(r, settings.seed)", BESIDE),
    ("no control is a control", PARTS, "[words.can_match(r) for r in first]", "[True for r in first]", BESIDE),
    ("text of a removal is that of the null", PARTS, "case.text if shuffled and case.text is not None else",
     "case.prompts if case.prompts else", BESIDE),
    ("a kept removal of another seed", PARTS, '"seed": settings.seed,\n', "\n", BESIDE),
    ("a kept removal of other conditions", PARTS, '"conditions": list(settings.conditions), ', "", BESIDE),
    ("largest gap without the choice", ERASURE, 'np.asarray(row["gap_band"])', 'np.asarray(row["gap_interval"])', SAID),
    ("best layer without the choice", "experiments/fillers.py", 'd["explained_band"]', 'd["explained_interval"]',
     "tests/test_experiments_fillers.py -k best"),
    ("a kept stage is not compared", RECORD, "compare_facts(json.loads", "(lambda *a: None)(json.loads", BESIDE),
    ("results with a dot share their stages", RECORD, "{path.name.removesuffix('.zarr')}.", "{path.stem}.", BESIDE),
    ("a changed tree passes for its commit", RECORD, 'commit.endswith("+") if commit', 'commit.endswith("-") if commit',
     BESIDE),
    ("records without their texts", RECORD, '"tokenizer", "prompts", ', '"tokenizer", ', BESIDE),
    ("beyond random with its sign turned", SUMMARY,
     'sel(subset="condition") - ds["difference"].sel(subset="random")',
     'sel(subset="random") - ds["difference"].sel(subset="condition")', BESIDE),
    ("a gap is a gap whatever its interval", ERASURE, "if low[k] > 0 else", "if gap[k] > 0 else", SAID),
    ("units below chance are above it", ERASURE, '"above" if low > 0.5', '"above" if high > 0.5', SAID),
    ("figures read the large result for the small", FIGURES, "'_small' if small", "'' if small", BESIDE),
    ("figures read the usual result whatever is named", FIGURES, "store = store or runs /", "store = runs /", BESIDE),
    ("two conditions in one colour", "figures/microscope.py", "colours[i % 7]", "colours[min(i, 2)]", BESIDE),
    ("items without a control have one", LOSS, "[np.where(matched, s, np.nan) for s in same]", "same", BESIDE),
    ("accuracy within classes is of any words", LOSS, "_seed(text, seed + k), within)", '_seed(text, seed + k), "any")',
     "tests/test_removal_loss.py::test_class_controls_delete_other_function_words_and_nothing_else"),
    ("released rows are not centred", "tokinterp/kernels/entropy.py", "functional.normalize(y - y.mean(0), dim=1)",
     "functional.normalize(y, dim=1)", ENTROPY),
    ("released entropy of rows as asked", "tokinterp/measurements/entropy.py",
     "entropy.clamped_spectrum(row[part]) for row, part in zip(released,",
     "entropy.clamped_spectrum(row[part]) for row, part in zip(x,", ENTROPY),
]  # fmt: skip
