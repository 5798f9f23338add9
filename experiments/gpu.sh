#!/bin/sh
# On a bare machine with torch for CUDA, from the copied checkout and without network:
#   experiments/gpu.sh --wheels WHEELS --minutes 9 --out OUT --data DATA
cd "$(dirname "$0")/.." || exit
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m experiments.gpu "$@"
