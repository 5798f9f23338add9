"""Serves neighbours.py from an environment with DADApy: reads a word per line, runs it, prints seconds and results."""

import sys
import time
import warnings

import numpy as np

warnings.simplefilter("ignore")
X = np.load(sys.argv[1])
Y = np.load(sys.argv[2]) if len(sys.argv) > 2 else X


def gride(data_class, first: int = 0) -> str:
    data = data_class(X)
    if first:
        data.compute_distances(maxk=first)
    return " ".join(repr(float(d)) for d in data.return_id_scaling_gride(range_max=64)[0])


def overlap(data_class) -> str:
    return repr(float(data_class(X).return_data_overlap(coordinates=Y, k=30)))


def imbalance(data_class) -> str:
    """Delta(X -> Y) and back, by its own functions on neighbours of every rank (fewer would be drawn by lot)."""
    from dadapy._utils.metric_comparisons import _return_imbalance  # pyright: ignore[reportMissingImports]
    from dadapy._utils.utils import compute_nn_distances  # pyright: ignore[reportMissingImports]

    near = [compute_nn_distances(z, len(z) - 1, "euclidean", None)[1] for z in (X, Y)]
    rng = np.random.default_rng(0)
    return f"{_return_imbalance(*near, rng, k=1)!r} {_return_imbalance(*near[::-1], rng, k=1)!r}"


def all_gride(data_class) -> str:
    """GRIDE of every cloud of X (prompt, layer, point, coordinate)."""
    return " ".join(repr(float(data_class(x).return_id_scaling_gride(range_max=2)[0][0])) for one in X for x in one)


def all_overlap(data_class) -> str:
    """Overlap of every layer of X with the next, prompt by prompt, k = 10."""
    pairs = [(one[i], one[i + 1]) for one in X for i in range(len(one) - 1)]
    return " ".join(repr(float(data_class(x).return_data_overlap(coordinates=y, k=10))) for x, y in pairs)


def pairs(data_class, k: int) -> str:
    """Overlap of every layer of X (layer, point, coordinate) with every other, each one's neighbours found once."""
    data = [data_class(x) for x in X]
    for one in data:
        one.compute_distances(maxk=k)
    found = [a.return_data_overlap(dist_indices=b.dist_indices, k=k) for a in data for b in data]
    return " ".join(repr(float(x)) for x in found)


def main() -> None:
    from dadapy import Data  # pyright: ignore[reportMissingImports]

    calls = {
        "gride": lambda: gride(Data),
        "gride64": lambda: gride(Data, 64),
        "twonn": lambda: repr(float(Data(X).compute_id_2NN()[0])),
        "overlap": lambda: overlap(Data),
        "imbalance": lambda: imbalance(Data),
        "all_gride": lambda: all_gride(Data),
        "all_overlap": lambda: all_overlap(Data),
        "pairs": lambda k: pairs(Data, k),
    }
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.process_time()
        word, *number = line.split()
        answer = calls[word](*map(int, number))
        print(time.process_time() - start, answer, flush=True)


if __name__ == "__main__":
    main()
