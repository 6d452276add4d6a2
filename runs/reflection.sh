#!/usr/bin/env bash
# Reflection in three pieces, all on the model that ships.
#
#   reflect  RefAug: worked solutions with another way and a further problem behind the answer, against the same
#            without, at equal examples and (from more problems, and from more passes) at equal tokens
#   correct  SCoRe: a second attempt at the same question, against its ablations, plain RL, STaR and supervised pairs
#   aha      how often chains check, backtrack and begin again, and what that is worth: base, fine-tuned, trained by RL.
#            It trains short ones of its own. TRAINED=runs/rl-against-sft takes those of that run folder where they are
#            there; which, is settled when a model is first needed and stays so for the run folder.
#
# Three seeds. Nearly two hours on two cores, of which correct takes more than one; goes on where it was stopped.
# PIECES="reflect aha" leaves the third for another day; each has tables of its own.
#
#   runs/reflection.sh [run folder]
set -euo pipefail
cd "$(dirname "$0")/.."
set -- "${1:-runs/reflection}" "${@:2}"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
out=$1
bin=${BIN:-.venv/bin}
seeds=${SEEDS:-0 1 2}
pieces=${PIECES:-correct reflect aha}   # the longest jobs come first
problems=${PROBLEMS:-1000}              # worked ones, of reflect; three passes over them, as in the paper
steps=${STEPS:-150}                     # of correct; two thirds of them in stage I
tokens=${TOKENS:-600000}                # that aha's own models learn from, where it has to train them
held=${HELD:-200}                       # held-out problems of each measurement
trained=${TRAINED:-}                    # where aha looks for models

reflect() { # task levels harder seed
    "$bin/mull" reflect --task "$1" --seed "$4" --resume --quiet --no-report --out "$out/reflect/$1-$4" -o "levels=$2" \
        -o "hard_levels=$3" -o "problems=$problems" -o passes=3 -o examples=16 -o lr=1e-3 -o dtype=bfloat16 \
        -o "eval_problems=$held" -o eval_samples=4
    "$bin/python" runs/reflection_evidence.py passes "$out" "$1" "$4"
}

# Every method samples about as many tokens a step: one of single attempts asks twice as many questions. Stage I is long:
# a second attempt learns to repeat the first before it learns to mend it.
correct() { # arm seed
    local long=$((steps * 2 / 3)) last=$steps home=$out/correct/chain
    local options=(-o "stage1_steps=$long")
    case $1 in
        stage1) last=$long ;;
        score) # goes on from its own stage I, which is measured, too
            correct stage1 "$2"
            if [ ! -d "$home/score-$2" ]; then
                rm -rf "$home/score-$2.part"
                cp -r "$home/stage1-$2" "$home/score-$2.part" && mv "$home/score-$2.part" "$home/score-$2"
            fi
            ;;
        no-stage1) options=(-o stage1_steps=0) ;;
        no-bonus) options+=(-o alpha=0) ;;
        star) options=(--method star -o groups=64) last=$((steps / 4)) ;; # few mend: a step needs many chains
        first | pair_sft) options=(--method "$1" -o groups=32) ;;
    esac
    "$bin/mull" correct --task chain --steps "$last" --seed "$2" --resume --quiet --no-report --out "$home/$1-$2" -o 'levels=[1]' \
        -o group_size=8 -o eval_problems=0 -o dtype=bfloat16 "${options[@]}"
    "$bin/python" runs/reflection_evidence.py attempts "$out" "$held" "$1" "$2"
}

model() { # sft|rl task seed: leaves it in $out/aha/models/KIND-TASK-SEED/model
    local there=$trained/$2/$1-$3 here=$out/aha/models/$1-$2-$3
    if [ -n "$trained" ] && [ ! -e "$here" ] && [ -d "$there/model" ]; then
        mkdir -p "$out/aha/models"
        ln -s "$(realpath "$there")" "$here"
    fi
    [ ! -d "$here/model" ] || return 0
    local common=(--task "$2" -o 'levels=[1,2]' --seed "$3" --resume --quiet --no-report -o dtype=bfloat16 --out "$here")
    case $1 in
        sft) "$bin/mull" sft "${common[@]}" --steps $((tokens / 8192)) -o lr=1e-3 -o eval_problems=0 ;;
        rl) "$bin/mull" rl "${common[@]}" --steps 2000 -o "trained_tokens=$tokens" -o lr=3e-4 ;;
    esac
}

aha() { # task seed; the held-out problems are the same for all seeds of training
    model sft "$1" "$2"
    model rl "$1" "$2"
    local models=(--model "sft=$out/aha/models/sft-$1-$2/model" --model "rl=$out/aha/models/rl-$1-$2/model")
    [ "$2" != "${seeds%% *}" ] || models=(--model base=nano "${models[@]}")
    "$bin/mull" aha --task "$1" --seed 0 --resume --quiet --out "$out/aha/$1-$2" "${models[@]}" \
        -o 'levels=[1,2]' -o "problems=$held" -o samples=4 -o each=1 -o resamples=4
}

if [ "${2:-}" = job ]; then
    "${@:3}"
    exit
fi
queued() { # piece: its jobs
    local seed task arm
    case $1 in
        aha) for seed in $seeds; do for task in countdown chain; do echo "aha $task $seed"; done; done ;;
        correct)
            for seed in $seeds; do
                for arm in score no-stage1 no-bonus first star pair_sft; do echo "correct $arm $seed"; done
            done
            ;;
        reflect)
            for seed in $seeds; do
                echo "reflect addition [2,3] [5] $seed" # of three and four digits are the further problems
                echo "reflect chain [1,2] [3] $seed"
            done
            ;;
        *)
            echo "there is no piece $1: aha, correct and reflect are" >&2
            return 1
            ;;
    esac
}
queue=$(for piece in $pieces; do queued "$piece" || exit; done)
# One process a core: training a small model does not use two threads well.
xargs -P 2 -L 1 runs/reflection.sh "$out" job <<<"$queue"
for piece in $pieces; do
    [ "$piece" != correct ] || "$bin/python" runs/reflection_evidence.py attempts "$out" "$held" base 0
    # shellcheck disable=SC2086
    "$bin/python" runs/reflection_evidence.py table "$out" "$piece" $seeds
done
