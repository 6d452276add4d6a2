#!/usr/bin/env bash
# The scaling law of reinforcement learning: accuracy against FLOPs, fitted to the first half of the compute of three
# seeds, published, then tested on the second half. Chain and countdown, held out. Under two hours on two cores; goes on
# where it was stopped.
#
#   runs/scale.sh [run folder]
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=passive
out=${1:-runs/scale}
bin=${BIN:-.venv/bin}

"$bin/mull" scale train --out "$out" --resume
"$bin/python" runs/scale_evidence.py "$out"
