#!/usr/bin/env bash
# Training on one GPU: is it right, how fast is a step, how long would the paper's schedule take. Installs nothing; needs patchifier[train].
#     benchmarks/gpu.sh [--batches 32 256 1024]
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
