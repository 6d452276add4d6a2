#!/usr/bin/env bash
# Which verifier helps, and up to which N: majority, ORM, PRM from exact labels, PRM from rollouts, critic.
# Same generator (nano), 512 held-out problems of chain and of addition, 256 chains each, 3 training seeds.
# Trains 24 scorers and scores 260,000 chains with each; goes on where it was stopped. Hours on two cores.
#
#   runs/verifiers.sh [run folder]
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
out=${1:-runs/verifiers}
bin=${BIN:-.venv/bin}

# The rollout labels and traces are shared by all kinds and seeds of a task; whoever comes first makes them.
scorers() { # task levels
    local task=$1 levels=$2
    for seed in 0 1 2; do
        for kind in orm prm prm-rollouts critic; do
            "$bin/mull" reward --kind "$kind" --task "$task" -o "levels=$levels" --seed "$seed" --resume --quiet \
                --out "$out/$task/$kind-$seed" --traces "$out/$task/traces" \
                -o problems=1024 -o samples=8 -o epochs=2 -o dtype=bfloat16 -o eval_problems=128
        done
    done
}
# One process a core: training a small model does not use two threads well.
scorers chain '[1,2]' & chain=$!
scorers addition '[3,4]' & addition=$!
"$bin/python" runs/verifiers_evidence.py pools "$out"
wait $chain
wait $addition
"$bin/python" runs/verifiers_evidence.py scores "$out" chain & chain=$!
"$bin/python" runs/verifiers_evidence.py scores "$out" addition & addition=$!
wait $chain
wait $addition
"$bin/python" runs/verifiers_evidence.py table "$out"
