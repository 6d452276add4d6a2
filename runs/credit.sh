#!/usr/bin/env bash
# Who is to be thanked for a right answer: a group's mean as the baseline, a learnt critic (PPO), sampled values
# (VinePPO), a process reward model beside the outcome in two forms, an implicit one (PRIME). From the same base on
# chain, at equal sampled tokens (VinePPO's continuations among them), three seeds. Two controls: random rewards, and a
# process reward without the outcome, once as differences and once as the sum of scores, which shows what a policy does
# to a scorer that alone pays it (half the tokens are enough for that). Two hours on two cores; goes on where it was
# stopped.
#
#   runs/credit.sh [run folder]
set -euo pipefail
cd "$(dirname "$0")/.."
set -- "${1:-runs/credit}" "${@:2}"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
out=$1
bin=${BIN:-.venv/bin}
tokens=${TOKENS:-1000000}
seeds=${SEEDS:-0 1 2}
arms="group ppo vineppo potential difference prime random only-difference only-sum"

# A critic reads a question's chains as one tree, and attention takes the square of what is read at once: where chains
# grow long, micro-batches of 1,024 tokens take a third of the time that the default's 4,096 do. Nothing else changes.
job() { # arm seed
    local arm=$1 seed=$2 options tokens=$tokens judged=(--algorithm prm -o "scorer=$out/prm/model")
    case $arm in
        group) options=(--algorithm mull) ;;
        random) options=(--algorithm mull -o random_reward=true) ;;
        potential | difference) options=("${judged[@]}" -o "process=$arm") ;;
        only-*) options=("${judged[@]}" -o process_only=true -o "process=${arm#only-}") tokens=$((tokens / 2)) ;;
        vineppo) options=(--algorithm vineppo -o groups=8) ;; # its continuations are most of a step's tokens
        prime) options=(--algorithm prime -o groups=8 -o critic_warmup=0) ;; # it asks more questions than it keeps
        *) options=(--algorithm "$arm") ;;
    esac
    "$bin/mull" rl "${options[@]}" --task chain --steps 2000 --seed "$seed" --resume --quiet --no-report \
        --out "$out/chain/$arm-$seed" \
        -o 'levels=[1,2]' -o "sampled_tokens=$tokens" -o dtype=bfloat16 -o micro_tokens=1024
    "$bin/python" runs/credit_evidence.py measure "$out" "$arm" "$seed"
}
if [ "${2:-}" = job ]; then
    job "$3" "$4"
    exit
fi

"$bin/mull" reward --kind prm --task chain --seed 0 --resume --quiet --out "$out/prm" \
    -o problems=4096 -o samples=8 -o epochs=3 -o dtype=bfloat16 -o eval_problems=128
"$bin/python" runs/credit_evidence.py measure "$out" base 0
# One process a core: training a small model does not use two threads well.
for seed in $seeds; do for arm in $arms; do echo "$arm $seed"; done; done | xargs -P 2 -L 1 runs/credit.sh "$out" job
"$bin/python" runs/credit_evidence.py table "$out"
