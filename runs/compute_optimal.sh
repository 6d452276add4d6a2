#!/usr/bin/env bash
# Accuracy at equal FLOPs for every strategy, and how many times fewer FLOPs `auto` needs than best-of-N for best-of-N's
# accuracy at its largest budget, difficulty estimates charged (Snell et al. 2408.03314 report about 4, uncharged).
# On chain and countdown, held out; `auto` is calibrated for each task on its validation split. About an hour on two
# cores; goes on where it was stopped.
#
#   runs/compute_optimal.sh [run folder]
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=passive
out=${1:-runs/compute-optimal}
bin=${BIN:-.venv/bin}
problems=${PROBLEMS:-100} # of each task
strategies='["vote","adaptive","best-of-n","weighted-vote","adaptive-weighted","beam","beam:expand=2","lookahead","dvts",'
strategies+='"rebase","mcts","particles","tot-bfs","tot-dfs","revise","wait:wait=check "]'

"$bin/mull" reward --kind orm --task chain --task countdown --seed 0 --resume --quiet --out "$out/orm" \
    -o "problems=${LESSONS:-2048}" -o samples=8 -o epochs=2 -o dtype=bfloat16 -o eval_problems=128
"$bin/mull" compare --task chain --task countdown --scorer "$out/orm/model" --out "$out/compare" --resume \
    -o "problems=$problems" -o 'budgets=[1,4,16,64]' -o "strategies=$strategies"
for task in chain countdown; do
    "$bin/mull" calibrate --task $task --scorer "$out/orm/model" --out "$out/calibration-$task" --resume \
        -o "problems=$((2 * problems))" -o 'budgets=[4,16,64]' \
        -o 'strategies=["beam","beam:expand=2","dvts","rebase","particles"]'
    "$bin/mull" compare --task $task --scorer "$out/orm/model" --out "$out/auto-$task" --resume \
        --calibration "$out/calibration-$task/calibration.json" -o "problems=$problems" -o 'budgets=[1,4,8,16,32,64]' \
        -o 'strategies=["vote","auto"]' -o trees=0
done
"$bin/python" runs/compute_optimal_evidence.py "$out"
