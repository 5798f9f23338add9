"""Write token_geometry.json: overlap of neighbours, cosines and block shuffles by Viswanathan et al. 2025's functions.

    git clone https://github.com/karthikviswanathn/token_geometry D && git -C D checkout 82cc5a9a106f
    pip install scikit-learn && python tests/golden/token_geometry.py D

Their dimension is DADApy's (`dadapy_gride.json`).  The tests draw clouds and permutations again from the same seeds.
"""

import sys

import numpy as np

KS = (1, 4, 10, 30)
SHUFFLES = [(0, 64, 0), (1, 64, 1), (2, 64, 2), (3, 64, 3), (2, 128, 4)]
"""Level, tokens (a multiple of 4**level), seed."""
CALLS = {
    "src/summarize.py": {"overlap": "compute_neighborhood_overlap(distances_x, distances_y)[k]"},
    "src/utils.py": {
        "distances": "compute_distances([[x], [y]])",
        "cosine": "compute_cosine_similarities([[x]]), its mean as in compute_csn",
        "shuffled": "np.random.seed(seed); shuffle_tokens(torch.arange(tokens), level)",
    },
}
SOURCE = {
    "repository": "karthikviswanathn/token_geometry",
    "commit": "82cc5a9a106f68db6c973355a28a2346a559f001",
    "calls": CALLS,
}


def clouds():
    """Two clouds of the same points, the second a rotated and bent version of the first; no two rows are equal."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((120, 9)) + 0.6
    return x, np.sin(x @ rng.standard_normal((9, 9)) / 2) + x


def main(checkout):
    import torch
    from authors import commit, functions, versions, write
    from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances

    commit(checkout, SOURCE["commit"])
    spread = functions(checkout, "src/summarize.py", ("compute_neighborhood_overlap",), np=np)
    names = ("compute_distances", "compute_cosine_similarities", "shuffle_tokens")
    space = {"np": np, "cosine_similarity": cosine_similarity, "euclidean_distances": euclidean_distances}
    theirs = functions(checkout, "src/utils.py", names, **space)
    x, y = clouds()
    overlap = spread["compute_neighborhood_overlap"](*theirs["compute_distances"]([[x], [y]]))
    shuffled = []
    for level, tokens, seed in SHUFFLES:
        np.random.seed(seed)
        order = theirs["shuffle_tokens"](torch.arange(tokens), level)[0].tolist()
        shuffled.append({"level": level, "tokens": tokens, "seed": seed, "order": order})
    write(__file__, {
        "sources": [SOURCE], "versions": versions("numpy", "scikit-learn"),
        "overlap": {str(k): float(overlap[k]) for k in KS},
        "cosine": float(np.mean(theirs["compute_cosine_similarities"]([[x]])[0])), "shuffled": shuffled,
    })  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
