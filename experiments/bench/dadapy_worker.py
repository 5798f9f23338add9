"""Serves neighbours.py from an environment with DADApy: reads a word per line, runs it, prints the dimensions."""

import sys
import warnings

import numpy as np

warnings.simplefilter("ignore")
X = np.load(sys.argv[1])


def gride(data_class, first: int = 0) -> str:
    data = data_class(X)
    if first:
        data.compute_distances(maxk=first)
    return " ".join(repr(float(d)) for d in data.return_id_scaling_gride(range_max=64)[0])


def main() -> None:
    from dadapy import Data  # pyright: ignore[reportMissingImports]

    calls = {
        "gride": lambda: gride(Data),
        "gride64": lambda: gride(Data, 64),
        "twonn": lambda: repr(float(Data(X).compute_id_2NN()[0])),
    }
    print("ready", flush=True)
    for line in sys.stdin:
        print(calls[line.strip()](), flush=True)


if __name__ == "__main__":
    main()
