#!/usr/bin/env bash
# What a search found becomes what the model does at once: MCTS over the train split, then imitation of what it chose,
# preferences over its siblings, or both; beside the same from plain chains at the same N, and beside the base. One
# chain at a time, held out; three seeds of learning on the same trees. On chain and on countdown. About an hour on two
# cores; goes on where it was stopped.
#
#   runs/search_in_the_loop.sh [run folder]
set -euo pipefail
cd "$(dirname "$0")/.."
set -- "${1:-runs/search-in-the-loop}" "${@:2}"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
out=$1
bin=${BIN:-.venv/bin}
problems=${PROBLEMS:-768}
seeds=${SEEDS:-0 1 2}

# The rates are each method's own, by valid problems of both tasks (docs/LOG.md): preferences alone do harm at 2e-4.
learn() { # task arm seed strategy method
    local rates=(-o lr=2e-4)
    [ "$5" != both ] || rates+=(-o beta=0.1)
    [ "$5" != dpo ] || rates=(-o lr=5e-5 -o beta=0.5)
    "$bin/mull" dpo --method "$5" --task "$1" --strategy "$4" --seed "$3" --resume --quiet --no-report --out "$out/$1/$2-$3" \
        --traces "$out/$1/traces-${2%%-*}" -o 'levels=[1,2]' -o "problems=$problems" -o samples=16 -o eval_problems=0 \
        "${rates[@]}" -o epochs=3 -o dtype=bfloat16
}

task() { # task
    for seed in $seeds; do
        for method in sft dpo both; do
            learn "$1" "mcts-$method" "$seed" mcts:value=rollout "$method"
            learn "$1" "plain-$method" "$seed" sample "$method"
        done
    done
    # shellcheck disable=SC2086
    "$bin/python" runs/search_in_the_loop_evidence.py measure "$out" "$1" $seeds
}
# One process a core: training a small model does not use two threads well.
task chain & chain=$!
task countdown & countdown=$!
wait $chain
wait $countdown
"$bin/python" runs/search_in_the_loop_evidence.py table "$out"
