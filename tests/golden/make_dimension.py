"""Recipe of dimension.json: pip install dadapy==0.3.4 in an environment of its own; python THIS_FILE > dimension.json."""

import json

import numpy as np

CASES = [
    {"kind": "gaussian", "seed": 0, "n": 512, "dim": 4, "d": 16},
    {"kind": "gaussian", "seed": 1, "n": 700, "dim": 12, "d": 64},
    {"kind": "curved", "seed": 2, "n": 600, "dim": 3, "d": 6},
    {"kind": "outlying", "seed": 3, "n": 400, "dim": 5, "d": 8},
]


def points(kind, seed, n, dim, d):
    """Return (n, d) float64 coordinates of a cloud of dimension dim."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, dim))
    if kind == "curved":  # a torus
        return np.concatenate([np.cos(z), np.sin(z)], axis=1)
    x = z @ rng.standard_normal((dim, d))
    if kind == "outlying":  # ten close pairs, whose ratios are beyond DADApy's cut
        x[:10] = x[10:20] + 1e-3 * rng.standard_normal((10, d))
    return x


def answers(case):
    """Return what DADApy says of a cloud."""
    from dadapy import Data

    x = points(**case)
    data = Data(x.copy())
    data.compute_distances(maxk=64)
    ids, errors, distances = data.return_id_scaling_gride(range_max=64)
    base = data.compute_id_2NN(algorithm="base", mu_fraction=0.9)[0]
    ml = data.compute_id_2NN(algorithm="ml")[0]
    found = {"gride": ids, "error": errors, "distance": distances, "facco": base, "mle": ml, "sum": float(np.abs(x).sum())}
    return {**case, **{k: np.asarray(v, float).tolist() for k, v in found.items()}}


if __name__ == "__main__":
    print(json.dumps({"package": "dadapy 0.3.4", "cases": [answers(c) for c in CASES]}, indent=1))
