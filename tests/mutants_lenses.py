"""Wrong changes to the space of the Jacobian lens, its edits and the pursuit."""

SPACE, PURSUIT = "tokinterp/lens/jspace.py", "tokinterp/kernels/pursuit.py"
OF_SPACE, OF_PURSUIT = "tests/lens/test_jspace.py::", "tests/kernels/test_pursuit.py::"
EDGES = "tests/lens/test_lens_boundaries.py::"
MUTANTS = [
    (
        "boundaries: of the token itself",
        "tokinterp/lens/lens.py",
        ".roll(-1, 1)",
        ".roll(0, 1)",
        f"{EDGES}test_entropies_are_those_before_word_starts_and_inside",
    ),
    (
        "boundaries: the fall",
        "tokinterp/lens/lens.py",
        "rise = entropy.diff(",
        "rise = -entropy.diff(",
        f"{EDGES}test_entropies_are_those_before_word_starts_and_inside",
    ),
    (
        "boundaries: ties are lost",
        "tokinterp/kernels/roc.py",
        "wins = ((low + high) * yes)",
        "wins = ((low + low) * yes)",
        "tests/kernels/test_roc.py::test_probabilities_are_those_of_the_rank_test_and_half_by_chance",
    ),
    (
        "jspace: control not rotated",
        SPACE,
        "atoms @ turn.to(atoms)",
        "atoms",
        f"{OF_SPACE}test_a_state_of_two_directions_is_taken_apart",
    ),
    (
        "jspace: swap of other coordinates",
        SPACE,
        ".flip(1) - torch.linalg.pinv",
        ".flip(0) - torch.linalg.pinv",
        f"{OF_SPACE}test_a_swap_exchanges_coordinates_and_leaves_the_rest",
    ),
    (
        "jspace: steering by the whole direction",
        SPACE,
        "return found / size",
        "return found",
        f"{OF_SPACE}test_steering_adds_the_direction_at_its_length",
    ),
    (
        "pursuit: long atoms first",
        PURSUIT,
        "(rest.float() @ units.T)",
        "(rest.float() @ units.T * size)",
        f"{OF_PURSUIT}test_every_point_is_that_of_a_loop",
    ),
    (
        "pursuit: weights of units",
        PURSUIT,
        "weight / scale, share",
        "weight * scale / scale, share",
        f"{OF_PURSUIT}test_every_point_is_that_of_a_loop",
    ),
    (
        "pursuit: weights below zero",
        PURSUIT,
        "bad = free & (goal <= 0)",
        "bad = free & (goal <= -1e9)",
        f"{OF_PURSUIT}test_weights_are_those_of_scipy",
    ),
]
