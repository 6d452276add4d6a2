#!/usr/bin/env bash
# Accuracy at equal FLOPs for every strategy, and how many times fewer FLOPs `auto` needs than best-of-N for best-of-N's
# accuracy at its largest budget, difficulty estimates charged (Snell et al. 2408.03314 report about 4, uncharged).
# On chain and countdown, held out; calibrated on the validation split. About an hour on two cores; goes on where it was
# stopped.
#
#   runs/compute_optimal.sh [run folder]
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=passive
out=${1:-runs/compute-optimal}
bin=${BIN:-.venv/bin}
strategies='["vote","adaptive","best-of-n","weighted-vote","adaptive-weighted","beam","beam:expand=2","lookahead","dvts",'
strategies+='"rebase","mcts","particles","tot-bfs","tot-dfs","revise","wait:wait=check ","auto"]'

"$bin/mull" reward --kind orm --task chain --task countdown --seed 0 --resume --quiet --out "$out/orm" \
    -o problems=2048 -o samples=8 -o epochs=2 -o dtype=bfloat16 -o eval_problems=128
"$bin/mull" calibrate --task chain --task countdown --scorer "$out/orm/model" --out "$out/calibration" --resume \
    -o problems=96 -o 'budgets=[4,16,64]' -o 'strategies=["adaptive-weighted","beam","beam:expand=2","dvts","rebase"]'
"$bin/mull" compare --task chain --task countdown --scorer "$out/orm/model" --out "$out/compare" --resume \
    --calibration "$out/calibration/calibration.json" -o problems=100 -o 'budgets=[1,4,16,64]' \
    -o "strategies=$strategies"
"$bin/python" runs/compute_optimal_evidence.py "$out"
