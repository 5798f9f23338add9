"""Wrong changes to measurements: chance levels, controls, intervals, masks, seeds, one layer off."""

SCORES = "tokinterp/measurements/probe_scores.py"
PLANTED = "tests/test_probe_scores.py -k planted_erasure"

MUTANTS = [
    ("others are the last pieces", SCORES, '"other": ~last,', '"other": last,', PLANTED),
    ("gap with its sign turned", SCORES, "value[base] - value,", "value - value[base],", PLANTED),
]
