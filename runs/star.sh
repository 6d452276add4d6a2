#!/usr/bin/env bash
# STaR's addition experiment from scratch: does a model that was shown the scratchpad of n digits, and can add one, learn
# the rest from its own chains? Arms: without and with rationalization, without restarts, from chains without a false line
# alone, and direct answers at equal steps. A base of 0.2 M parameters for each of 3 seeds; 16 iterations with the paper's
# steps, 4,000 problems each (the paper: 10,000). Goes on where it was stopped. Two hours on two cores.
#
#   runs/star.sh [run folder]
set -euo pipefail
cd "$(dirname "$0")/.."
set -- "${1:-runs/star}" "${@:2}"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
out=$1
bin=${BIN:-.venv/bin}
seeds=${SEEDS:-0 1 2}
iterations=${ITERATIONS:-16}

learning=(-o lr=3e-3 -o warmup=100 -o step_tokens=2048 -o dtype=bfloat16 -o threads=1)

# The paper's model added one digit. A base that does not after 1,000 steps is trained from the beginning with more.
base() { # seed
    local steps
    for steps in 1000 1500 2000; do
        "$bin/mull" pretrain --task runs/star_base.py:Base --seed "$1" --steps "$steps" --resume --quiet \
            --out "$out/base-$1-$steps" -o levels=5 -o layers=4 -o width=64 -o threads=1
        ln -sfn "base-$1-$steps" "$out/base-$1"
        if "$bin/python" runs/star_evidence.py adds "$out/base-$1/model"; then return; fi
    done
    echo "seed $1: no base adds one digit" >&2
    return 1
}

star() { # arm seed [options]
    local arm=$1 seed=$2
    shift 2
    "$bin/mull" star --task addition --model "$out/base-$seed/model" --seed "$seed" --resume --quiet --no-report \
        --out "$out/$arm-$seed" -o "iterations=$iterations" -o "levels=[1,2,3,4,5]" -o problems=4000 -o think_tokens=128 \
        -o replay=runs/star_base.py:Hints "${learning[@]}" "$@"
}

# The same problems as the rationalizing arm asked, their answers alone, and as many steps as all its iterations had.
direct() { # seed
    local steps
    steps=$("$bin/python" runs/star_evidence.py direct "$out" "$1")
    "$bin/mull" sft --model "$out/base-$1/model" --seed "$1" --resume --quiet --no-report --out "$out/direct-$1" \
        -o "tasks=[\"addition\"]" -o "data=$out/direct-$1.jsonl" -o eval_problems=0 "${learning[@]}" \
        -o "steps=$steps" -o final_lr=3e-3 -o micro_tokens=2048 -o checkpoint_every=500
}

# One process a core: training a small model does not use two threads well.
job() { # what seed
    case $1 in
        base) base "$2" ;;
        with) star rationalization "$2" && direct "$2" ;;
        clean) star clean "$2" -o clean_lines=true ;;
        no-restart) star no-restart "$2" -o restart=false ;;
        plain) star plain "$2" -o rationalize=false ;;
        longer) "$bin/python" runs/star_evidence.py longer "$out" "$2" ;;
    esac
}
if [ "${2:-}" = job ]; then
    job "$3" "$4"
    exit
fi
queue() { # what ...: of every seed, the longest first, so that both cores are done at about the same time
    for what in "$@"; do for seed in $seeds; do echo "$what $seed"; done; done | xargs -P 2 -L 1 runs/star.sh "$out" job
}
queue base
queue with no-restart clean plain
queue longer
"$bin/python" runs/star_evidence.py table "$out"
