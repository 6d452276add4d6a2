#!/usr/bin/env bash
# The demo from start to end into a fresh folder, its figures into docs/evidence/demo.json, its page into docs/img/.
#
#   runs/demo.sh [run folder]
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=passive
out=${1:-runs/demo}
mull=${MULL:-.venv/bin/mull}
"$mull" demo --out "$out" --resume
"$(dirname "$mull")/python" runs/demo_evidence.py "$out"
