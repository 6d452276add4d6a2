#!/usr/bin/env bash
# Is it better to learn from one's own chains of thought or from those of a teacher? At equal training tokens, from the
# same base: supervised fine-tuning on the reference solver's worked solutions, reinforcement learning, supervised
# fine-tuning on the model's own verified chains (expert iteration), and the control, RL on random rewards. On chain and
# on countdown, three seeds; pass@1 to pass@256 on the levels that were trained and on a harder one.
# About two hours on two cores; goes on where it was stopped.
#
#   runs/rl_against_sft.sh [run folder]
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
out=${1:-runs/rl-against-sft}
bin=${BIN:-.venv/bin}
tokens=${TOKENS:-1500000} # prompts included
seeds=${SEEDS:-0 1 2}
rates=${RATES:-3e-4 1e-3 3e-3 6e-3}

# Fine-tuning gets the best of four learning rates, chosen on valid problems of the trained levels; reinforcement
# learning has the demo's, and so has a second arm of fine-tuning, because the best rate forgets most.
sweep() { # task
    for lr in $rates; do
        "$bin/mull" sft --task "$1" -o 'levels=[1,2]' --seed 9 --resume --quiet --no-report -o dtype=bfloat16 \
            --out "$out/$1/sweep-$lr" -o eval_problems=0 --steps $((tokens / 8192)) -o "lr=$lr" >&2
    done
    # shellcheck disable=SC2086
    "$bin/python" runs/rl_against_sft_evidence.py choose "$out" "$1" $rates
}

arms() { # task
    local task=$1 common best
    best=$(sweep "$task")
    for seed in $seeds; do
        common=(--task "$task" -o 'levels=[1,2]' --seed "$seed" --resume --quiet --no-report -o dtype=bfloat16)
        rl=("${common[@]}" --steps 2000 -o "trained_tokens=$tokens" -o lr=3e-4)
        sft=("${common[@]}" -o eval_problems=0 --steps $((tokens / 8192)))
        "$bin/mull" sft "${sft[@]}" --out "$out/$task/sft-$seed" -o "lr=$best"
        "$bin/mull" sft "${sft[@]}" --out "$out/$task/gentle-$seed" -o lr=3e-4
        "$bin/mull" rl "${rl[@]}" --out "$out/$task/rl-$seed"
        "$bin/mull" rl "${rl[@]}" --out "$out/$task/expert-$seed" -o algorithm=expert
        "$bin/mull" rl "${rl[@]}" --out "$out/$task/random-$seed" -o random_reward=true
    done
    "$bin/python" runs/rl_against_sft_evidence.py measure "$out" "$task" $seeds
}
# One process a core: a small model does not use two threads well.
arms chain & chain=$!
arms countdown & countdown=$!
wait $chain
wait $countdown
"$bin/python" runs/rl_against_sft_evidence.py table "$out"
