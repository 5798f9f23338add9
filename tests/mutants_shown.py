"""Wrong changes to tables, reports and curves: intervals and names of others, units, counts, layers, gaps."""

TABLES, REPORT, LAYERS = "tokinterp/tables.py", "tokinterp/report.py", "tokinterp/plots/layers.py"
OWN = "tests/test_tables.py::test_each_column_has_the_interval_and_count_of_its_own_variable"
COUNTED = "tests/test_tables.py::test_problems_are_counted_and_layers_keep_their_numbers"
CELLS = "tests/test_report.py::test_cells_say_what_there_is_no_number_or_interval_for"
NAMED = "tests/test_report.py::test_prompts_left_out_are_named_with_their_layers_and_the_lead_says_sizes"
BANDS = "tests/test_plots_layers.py::test_bands_and_names_belong_to_their_own_lines"
CHOSEN = "tests/test_plots_layers.py::test_layers_chosen_stand_at_their_own_numbers_and_depths"
WITHIN = "tests/test_plots_layers.py::test_a_variable_without_prompts_is_drawn_with_its_own_interval"
PROBES = "tokinterp/measurements/token_probes.py"
INFINITE = "tests/test_probe_closed.py::test_infinite_numbers_of_other_kinds_are_refused"

MUTANTS = [
    ("shown: interval of the first variable", TABLES, 'interval = means[f"{name}_interval"]',
     'interval = means[f"{names[0]}_interval"]', OWN),
    ("shown: counts of the first variable", TABLES, 'count=means[f"{name}_count"].isel(place)',
     'count=means[f"{name}_count"].isel(dict.fromkeys(place, 0))', OWN),
    ("shown: units of the first variable", TABLES, 'str(ds[name].attrs.get("units", "1"))',
     'str(ds[names[0]].attrs.get("units", "1"))', OWN),
    ("shown: rows are counted from 0", TABLES, "[[str(n), *(number", "[[str(i), *(number", COUNTED),
    ("shown: the first layer counts as finite", TABLES, '(table["first_nonfinite_layer"] >= 0).sum()',
     '(table["first_nonfinite_layer"] > 0).sum()', COUNTED),
    ("shown: reasons are added up", TABLES, '(n := int((ds["refused"] > 0).sum()))', '(n := int(ds["refused"].sum()))',
     COUNTED),
    ("shown: no number is 0", TABLES, 'return "–" if not', 'return "0" if not', CELLS),
    ("shown: no interval is not said", REPORT, "no interval{some}", "{some}", CELLS),
    ("shown: a mean of some is of all", REPORT, 'some = f" n={int(c.count[i])}" if c.count[i] < n else ""',
     'some = ""', CELLS),
    ("shown: left out are numbered by row", REPORT, '", ".join(f"{prompt[i]} (from', '", ".join(f"{i} (from', NAMED),
    ("shown: left out from the embedding are not named", REPORT, "bad = np.flatnonzero(layer >= 0)",
     "bad = np.flatnonzero(layer > 0)", NAMED),
    ("shown: tokens of the longest text", REPORT, "int(table['n_tokens'].sum()):,} tokens",
     "int(table['n_tokens'].max()):,} tokens", NAMED),
    ("shown: layers from 0", LAYERS, "x = chosen[depth].values", "x = np.arange(chosen.sizes[depth])", CHOSEN),
    ("shown: depth of the layers drawn", LAYERS, 'x = chosen["relative_depth"].values',
     "x = np.linspace(0, 1, chosen.sizes[depth])", CHOSEN),
    ("shown: band of the first line", LAYERS, 'band.isel(at).transpose("bound", depth)',
     'band.isel(dict.fromkeys(at, 0)).transpose("bound", depth)', BANDS),
    ("shown: names in the legend turned", LAYERS, "for value, look in looks.items()]",
     "for value, look in zip(reversed(looks), looks.values(), strict=True)]", BANDS),
    ("shown: own interval is not drawn", LAYERS, 'elif {*ds.get(f"{name}_interval", mean).dims} ==',
     'elif {*ds.get(f"{name}_between", mean).dims} ==', WITHIN),
    ("weights of one seed", "tokinterp/measurements/probe_training.py",
     "manual_seed((job.seed * 1009 + layer) * 101 + job.offsets[row] + 50)",
     "manual_seed(layer * 101 + job.offsets[row] + 50)",
     "tests/test_probe_training.py::test_weights_begin_by_seed_layer_and_offset"),
    ("weights of one layer", "tokinterp/measurements/probe_training.py", "(job.seed * 1009 + layer) * 101",
     "job.seed * 1009 * 101", "tests/test_probe_training.py::test_weights_begin_by_seed_layer_and_offset"),
    ("closed: any infinite bias stays", PROBES, ".isneginf()).any()", ".isinf()).any()", INFINITE),
    ("closed: a class with weights is never said", PROBES, '~tensors[f"weight.{o}"][never].any() & ', "", INFINITE),
    ("closed: absent classes are refused", PROBES, ".masked_fill(never, 0.0)", ".masked_fill(never, torch.nan)",
     "tests/test_probe_closed.py::test_a_class_that_is_never_a_label_at_an_offset_is_never_said_there"),
]  # fmt: skip
