"""Run benchmarks: ``python -m experiments.bench [NAME ...] --out runs/bench``; all without a name."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import (
    capture,
    corpus,
    filler_training,
    growth,
    jacobian,
    layer_geometry,
    lens,
    linearity,
    load,
    machines,
    measurements,
    microscope,
    neighbours,
    overlap,
    probes,
    routes,
    segmentation,
)

BENCHMARKS = {
    "capture": capture.run,
    "corpus": corpus.run,
    "filler_training": filler_training.run,
    "growth": growth.run,
    "jacobian": jacobian.run,
    "neighbours": neighbours.run,
    "layer_geometry": layer_geometry.run,
    "lens": lens.run,
    "linearity": linearity.run,
    "load": load.run,
    "machines": machines.run,
    "measurements": measurements.run,
    "microscope": microscope.run,
    "overlap": overlap.run,
    "probes": probes.run,
    "routes": routes.run,
    "segmentation": segmentation.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ({', '.join(BENCHMARKS)}); all when left out")
    parser.add_argument("--out", type=Path, default=None, help="folder for the JSON files")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--llama7b", action="store_true", help="measurements on a Llama-7B-shaped bf16 model (GPU)")
    parser.add_argument("--large", action="store_true", help="corpus of 100,000 tokens instead of 20,000")
    args = parser.parse_args()
    unknown = [n for n in args.names if n not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}: choose from {', '.join(BENCHMARKS)}")
    for name in args.names or BENCHMARKS:
        extra = {"llama7b": True} if args.llama7b and name == "measurements" else {}
        extra |= {"large": True} if args.large and name == "corpus" else {}
        BENCHMARKS[name](out=args.out, small=args.small, **extra)


if __name__ == "__main__":
    main()
