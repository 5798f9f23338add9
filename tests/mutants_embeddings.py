"""Wrong changes to what is said of the rows of embeddings and of the vocabulary."""

GLITCH = "tokinterp/embeddings/glitch.py"
OF_GLITCH = "tests/embeddings/test_glitch.py::"
FRAMES, OF_FRAMES = "tokinterp/embeddings/frames.py", "tests/embeddings/test_frames.py::"
CONCEPTS, OF_CONCEPTS = "tokinterp/embeddings/concepts.py", "tests/embeddings/test_concepts.py::"
MUTANTS = [
    (
        "concepts: place after the token",
        CONCEPTS,
        "places[0] - before] = True",
        "places[0] + before] = True",
        f"{OF_CONCEPTS}test_states_are_those_at_or_before_the_first_place",
    ),
    (
        "concepts: fitted to what is held out",
        CONCEPTS,
        "own, rng = z[fitted],",
        "own, rng = z,",
        f"{OF_CONCEPTS}test_what_is_held_out_is_not_fitted",
    ),
    (
        "concepts: chance is the concept itself",
        CONCEPTS,
        "[*words[1:], words[0]]",
        "[*words[:1], *words[1:]]",
        f"{OF_CONCEPTS}test_words_near_samples_are_counted_with_those_of_the_next_concept_as_chance",
    ),
    (
        "concepts: least active samples",
        CONCEPTS,
        "np.argsort(-made.codes, axis=0",
        "np.argsort(made.codes, axis=0",
        f"{OF_CONCEPTS}test_words_near_samples_are_counted_with_those_of_the_next_concept_as_chance",
    ),
    (
        "concepts: codes below zero",
        CONCEPTS,
        "positive_code=True",
        "positive_code=False",
        f"{OF_CONCEPTS}test_planted_directions_are_found_and_controls_do_worse",
    ),
    (
        "frames: the word is in its concept",
        FRAMES,
        "total[at] - frames if leave_out",
        "total[at] if leave_out",
        f"{OF_FRAMES}test_values_are_those_of_a_loop_over_words",
    ),
    (
        "frames: not centred",
        FRAMES,
        "(w - w[use].mean(0)) @ root",
        "w @ root",
        f"{OF_FRAMES}test_whitened_rows_have_mean_zero_and_unit_covariance",
    ),
    (
        "frames: columns of zeros count",
        FRAMES,
        "((f.norm(dim=2) > 0).sum(1) *",
        "((f.norm(dim=2) >= 0).sum(1) *",
        f"{OF_FRAMES}test_the_shipped_model_has_the_known_values",
    ),
    (
        "frames: control of the same concept",
        FRAMES,
        "np.flatnonzero(concept != concept[n])",
        "np.flatnonzero(concept == concept[n])",
        f"{OF_FRAMES}test_controls_are_other_words_and_random_columns_as_long",
    ),
    (
        "frames: control of other norms",
        FRAMES,
        "noise * (frames.norm(dim=2) / noise.norm(dim=2))[..., None]",
        "noise * (frames.norm(dim=2) > 0)[..., None]",
        f"{OF_FRAMES}test_controls_are_other_words_and_random_columns_as_long",
    ),
    (
        "glitch: controls are candidates",
        GLITCH,
        'np.setdiff1d(np.flatnonzero(reach == "ok"), candidates)',
        'np.flatnonzero(reach == "ok")[: 2 * len(candidates)]',
        f"{OF_GLITCH}test_what_was_never_trained_is_found_and_nothing_else",
    ),
    (
        "glitch: last step only",
        GLITCH,
        ".watched.amax(1)",
        ".watched[:, -1]",
        f"{OF_GLITCH}test_probabilities_are_the_highest_of_a_loop_over_steps",
    ),
    (
        "glitch: verdict whatever the controls",
        GLITCH,
        "ends[0, 0] > ends[1, 1]",
        "ends[0, 0] > -1",
        f"{OF_GLITCH}test_a_model_that_cannot_repeat_gives_no_verdict",
    ),
    (
        "glitch: cut at the window itself",
        GLITCH,
        "float(value[max(i - 1, 0)])",
        "float(value[i])",
        f"{OF_GLITCH}test_the_display_cut_is_that_of_a_loop",
    ),
    (
        "glitch: mask without controls below",
        GLITCH,
        '(role == "candidate") & conclusive',
        '(role != "")',
        f"{OF_GLITCH}test_a_model_that_cannot_repeat_gives_no_verdict",
    ),
    (
        "glitch: every text has to be encodable",
        GLITCH,
        "len(asked)).any(0)",
        "len(asked)).any(0) | True",
        f"{OF_GLITCH}test_a_token_that_merges_with_what_stands_beside_it_cannot_be_asked_for",
    ),
]
