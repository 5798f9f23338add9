"""Write llm_microscope.json: linearity, token errors, anisotropy and dimension, by the authors' own functions.

    git clone https://github.com/AIRI-Institute/LLM-Microscope A && git -C A checkout b6db939b2696
    git clone https://github.com/rmusab/mllm-microscope B && git -C B checkout b477425c4c5e
    python tests/golden/llm_microscope.py A B

The functions are those of LLM_microscope.ipynb, called with float64 clouds.  The errors of single tokens are the row
norms behind its score (``errors``), and those of ``get_linear_errors`` of mllm_microscope.py (``released_errors``),
which solves normal equations in float32: those of well conditioned clouds only, as at a condition of 3,000 they are
wrong by up to 7 %.  The tests draw the clouds again.
"""

import sys
from types import SimpleNamespace

import numpy as np

LINEAR = [(0, 60, 8), (1, 200, 16), (2, 40, 24), (4, 40, 8)]
"""Seed, rows, channels."""
RELEASED = 8
DIMENSION = [(0.0, 0, 400), (0.05, 3, 300), (0.4, 1, 300)]
"""Share of points that coincide with others in pairs, seed, points."""
NOTEBOOK = {
    "repository": "AIRI-Institute/LLM-Microscope",
    "commit": "b6db939b2696845ce1f88cf69cddc41e808eea17",
    "file": "LLM_microscope.ipynb",
    "calls": {
        "score": "procrustes_similarity(x, y)",
        "without_residual": "procrustes_similarity_centered(x, y)",
        "anisotropy": "calculate_anisotropy_torch(x)",
        "dimension": "intrinsic_dimension(x)",
        "errors": "(get_est_svd(X, Y) - Y).norm(dim=-1) of X, Y: x, y less their mean, divided by their norm",
    },
}
TOKENS = {
    "repository": "rmusab/mllm-microscope",
    "commit": "b477425c4c5e0865ceed20d5fe36d38e35f2ebb8",
    "file": "mllm_microscope.py",
    "calls": {"released_errors": "get_linear_errors(torch.stack([x, y]))[0]"},
}


def clouds(seed, n, d):
    """Two clouds: a nonlinear step of correlated rows, with a channel far from 0."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + 3.0
    return x, x + 0.3 * np.tanh(x @ rng.standard_normal((d, d))) + 0.05 * rng.standard_normal((n, d))


def paired(share, seed, n=2048, d=10):
    """n points of a d-dimensional Gaussian, of which a share coincide with others in pairs."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    pairs = round(share * n / 2)
    x[n - pairs :] = x[:pairs]
    return x


def main(notebook, tokens):
    import torch
    from authors import commit, functions, versions, write

    commit(notebook, NOTEBOOK["commit"])
    commit(tokens, TOKENS["commit"])
    names = (
        "get_est_svd", "procrustes_similarity", "procrustes_similarity_centered", "calculate_anisotropy_torch",
        "intrinsic_dimension",
    )  # fmt: skip
    theirs = functions(notebook, NOTEBOOK["file"], names, torch=torch, device=torch.device("cpu"))
    own = functions(tokens, TOKENS["file"], ("get_linear_errors", "get_est_svd"), torch=torch)
    itself = SimpleNamespace(get_est_svd=lambda x, y: own["get_est_svd"](None, x, y))
    linear = []
    for seed, n, d in LINEAR:
        x, y = (torch.from_numpy(z) for z in clouds(seed, n, d))
        unit = [(z - z.mean(0)) / (z - z.mean(0)).norm() for z in (x, y)]
        linear.append({
            "seed": seed, "n": n, "d": d, "score": theirs["procrustes_similarity"](x, y),
            "without_residual": theirs["procrustes_similarity_centered"](x, y),
            "anisotropy": theirs["calculate_anisotropy_torch"](x),
            "errors": (theirs["get_est_svd"](*unit) - unit[1]).norm(dim=-1).tolist(),
        })  # fmt: skip
        if d == RELEASED:
            linear[-1]["released_errors"] = own["get_linear_errors"](itself, torch.stack([x, y]))[0].tolist()
    dimension = [
        {"share": share, "seed": seed, "n": n,
         "dimension": theirs["intrinsic_dimension"](torch.from_numpy(paired(share, seed, n)))}
        for share, seed, n in DIMENSION
    ]  # fmt: skip
    write(__file__, {"sources": [NOTEBOOK, TOKENS], "versions": versions("torch", "numpy"),
                     "linear": linear, "dimension": dimension})  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
