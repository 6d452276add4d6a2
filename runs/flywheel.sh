#!/usr/bin/env bash
# Does another turn pay, and does the rule know when it does not? `mull flywheel` on chain and on countdown, three seeds,
# with a patience that lets it go on to the last turn; where its own rule would have stopped it follows from the same
# files, because the rule is a function of them. Controls: one turn with as many questions as all turns together (no
# loop), and a loop whose verdicts on train problems are chance. About an hour on two cores; goes on where it was stopped.
#
#   runs/flywheel.sh [run folder]
set -euo pipefail
cd "$(dirname "$0")/.."
set -- "${1:-runs/flywheel}" "${@:2}"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
out=$1
bin=${BIN:-.venv/bin}
tasks=${TASKS:-chain countdown}
seeds=${SEEDS:-0 1 2}
turns=${TURNS:-8}
problems=${PROBLEMS:-256} # asked in each turn
held=${HELD:-512}         # valid problems, and as many test problems

job() { # task arm seed
    local task=$1 options=(-o "turns=$turns" -o "problems=$problems")
    case $2 in
        once) options=(-o turns=1 -o "problems=$((turns * problems))") ;;
        coin) task=runs/flywheel_coin.py:Coin options=(-o "turns=$(((turns + 1) / 2))" -o "problems=$problems") ;;
    esac
    "$bin/mull" flywheel --task "$task" --seed "$3" --resume --quiet --no-report --out "$out/$1/$2-$3" "${options[@]}" \
        -o 'levels=[1,2]' -o patience=99 -o "valid_problems=$held" -o "test_problems=$held" -o lr=3e-4 \
        -o step_tokens=4096 -o dtype=bfloat16 -o threads=1
}
if [ "${2:-}" = job ]; then
    job "$3" "$4" "$5"
    exit
fi

# One process a core: training a small model does not use two threads well. The longest first.
{
    for task in countdown chain; do
        case " $tasks " in *" $task "*) for seed in $seeds; do echo "$task loop $seed"; done ;; esac
    done
    case " $tasks " in *" chain "*) for seed in $seeds; do echo "chain coin $seed"; done ;; esac
    for task in $tasks; do for seed in $seeds; do echo "$task once $seed"; done; done
} | xargs -P 2 -L 1 runs/flywheel.sh "$out" job
"$bin/python" runs/flywheel_evidence.py "$out"
