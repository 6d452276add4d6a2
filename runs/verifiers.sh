#!/usr/bin/env bash
# Which verifier helps, and up to which N: majority, ORM, PRM from exact labels, PRM from rollouts, critic.
# Same generator (nano), 512 held-out problems of chain and of addition, 256 chains each, 3 training seeds.
# Trains 24 scorers and scores 131,072 chains with each; goes on where it was stopped. Hours on two cores.
#
#   runs/verifiers.sh [run folder]
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
out=${1:-runs/verifiers}
bin=${BIN:-.venv/bin}

# Traces are shared by kinds and seeds; whoever comes first makes them. Rollout labels cost a thousand times what exact
# ones do, so they are of fewer questions, learnt from more often. A critic reads every chain by itself, where the others
# read the tree of a question's chains: its 1,200 steps are one to two times the tokens that a PRM learns from. Scorers
# are two layers deeper than the policy.
scorers() { # task levels
    local task=$1 levels=$2 traces
    for seed in 0 1 2; do
        for kind in prm orm critic prm-rollouts; do
            traces=(--traces "$out/$task/traces" -o problems=4096 -o epochs=3)
            [ "$kind" != critic ] || traces+=(-o max_steps=1200)
            [ "$kind" != prm-rollouts ] || traces=(--traces "$out/$task/traces-rollouts" -o problems=1024 -o epochs=6)
            "$bin/mull" reward --kind "$kind" --task "$task" -o "levels=$levels" --seed "$seed" --resume --quiet \
                --out "$out/$task/$kind-$seed" "${traces[@]}" \
                -o samples=8 -o more_layers=2 -o dtype=bfloat16 -o eval_problems=128
        done
    done
}
# One process a core: training a small model does not use two threads well.
scorers chain '[1,2]' & chain=$!
scorers addition '[3,4]' & addition=$!
wait $chain
wait $addition
OMP_NUM_THREADS=2 "$bin/python" runs/verifiers_evidence.py pools "$out"
"$bin/python" runs/verifiers_evidence.py scores "$out" chain & chain=$!
"$bin/python" runs/verifiers_evidence.py scores "$out" addition & addition=$!
wait $chain
wait $addition
"$bin/python" runs/verifiers_evidence.py table "$out"
