#!/usr/bin/env bash
# Mini: how much of a trained model goes into one of a third its size, and what becomes of its answers when its thoughts
# are held short.
#   Students on chain: the teacher is nano after RL. Off-policy from fresh weights (all right chains, the shortest right
#   one, all chains unverified), from one of the teacher's layers, and from a small base; on-policy after that, beside
#   as many tokens more off-policy; and the small base itself.
#   Reinforced: RL alone, for as many tokens as the students learn from, of the small base and of nano.
#   Lengths on countdown, where thoughts are searches of very different length: token targets, effort words, rewards for
#   short chains, long-to-short, beside cutting chains off and closing their thoughts by force.
# Three pieces: lengths, an hour and a half on two cores, students, an hour and three quarters, and reinforced, one. A
# quarter of an hour more where runs/rl_against_sft.sh has left no models. Goes on where it was stopped;
# PIECES=students runs that one alone.
#
#   runs/mini.sh [run folder]
set -euo pipefail
cd "$(dirname "$0")/.."
set -- "${1:-runs/mini}" "${@:2}"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
out=$1
bin=${BIN:-.venv/bin}
pieces=${PIECES:-lengths students reinforced}
trained=${TRAINED:-runs/rl-against-sft} # whose rl-0 is the teacher, where it is there
rl_tokens=${RL_TOKENS:-1500000}         # learnt from by teachers, prompts included
tokens=${TOKENS:-6000000}               # learnt from by a fresh student, by the small base, and by RL alone
problems=${PROBLEMS:-16384}             # questions to the teacher, 4 chains each
on_steps=${ON_STEPS:-200}
seeds=${SEEDS:-0 1 2}
students=${STUDENTS:-fresh-right fresh-shortest fresh-all layers small-right}
length_seeds=${LENGTH_SEEDS:-0}
length_tokens=${LENGTH_TOKENS:-2500000} # sampled for training by each arm of the lengths
length_problems=${LENGTH_PROBLEMS:-1024}
lengths=${LENGTHS:-plain taught said taught-right paper exact max words kimi cosine overlong shortest pairs}

shape=(-o layers=5 -o width=64) # 32% of nano's parameters
levels=(-o "levels=[1,2]" -o dtype=bfloat16 --resume --quiet --no-report)

teacher() { # task: what the other piece has trained, or the same RL here
    local folder=$out/$1/teacher found=$trained/$1/rl-0
    if [ -d "$folder/model" ]; then return; fi
    if [ -f "$folder/config.toml" ] || [ ! -f "$found/model/model.safetensors" ]; then
        "$bin/mull" rl --task "$1" --steps 2000 --out "$folder" -o "trained_tokens=$rl_tokens" "${levels[@]}"
    else
        rm -rf "$folder.part" && mkdir -p "$folder.part"
        cp -r "$found/model" "$found/metrics.jsonl" "$folder.part" && mv "$folder.part" "$folder"
    fi
}

# ------------------------------------------------------------------------------------------------ students

distill() { # name seed [options]
    "$bin/mull" distill --task chain --seed "$2" --out "$out/chain/$1-$2" --teacher "$out/chain/teacher/model" \
        -o eval_problems=0 "${levels[@]}" "${@:3}"
}

# Equal tokens for every kind of chain, to a step. Many small steps, as in pretraining.
off() { # name seed keep [options]
    distill "$1" "$2" --keep "$3" --traces "$out/chain/traces" -o "problems=$problems" -o samples=4 \
        -o compile=true -o "epochs=$(cat "$out/chain/epochs-$3")" -o "trained_tokens=$tokens" -o step_tokens=2048 \
        -o optimizer=muon -o weight_decay=0.1 -o checkpoint_every=500 "${@:4}"
}

student() { # arm seed
    local small=$out/chain/small-$2/model fresh=(-o lr=3e-3 -o warmup=50)
    case $1 in
        fresh-*) off "$1" "$2" "${1#fresh-}" "${shape[@]}" "${fresh[@]}" ;;
        layers) off layers "$2" right -o init=layers -o layers=1 "${fresh[@]}" ;;
        small-right) off small-right "$2" right --student "$small" -o lr=2e-3 ;;
        on) distill on "$2" --method on --student "$out/chain/small-right-$2/model" --steps "$on_steps" -o lr=1e-3 ;;
        more) # the control of on-policy: as many tokens of the teacher's chains again
            off more "$2" right --student "$out/chain/small-right-$2/model" -o lr=1e-3 \
                -o "trained_tokens=$("$bin/python" runs/mini_evidence.py learnt "$out" on "$2")"
            ;;
        rl | longer) # where nothing is solved nothing is learnt from: then the sampled tokens end it
            [ "$1" = rl ] || small=nano
            "$bin/mull" rl --model "$small" --task chain --steps 9000 --seed "$2" --out "$out/chain/$1-$2" \
                -o "trained_tokens=$tokens" -o "sampled_tokens=$((4 * tokens))" "${levels[@]}"
            ;;
        small)
            "$bin/mull" pretrain --task chain --steps $((tokens / 2048)) --seed "$2" --out "$out/chain/small-$2" \
                -o levels=2 "${shape[@]}" -o step_tokens=2048 --resume --quiet
            ;;
    esac
    "$bin/python" runs/mini_evidence.py measure "$out" "$1" "$2"
    case $1 in
        small-right) student on "$2" ;;
        on) student more "$2" ;;
    esac
}

# ------------------------------------------------------------------------------------------------ lengths

# Every arm goes on from the same trained model: RL by the same number of sampled tokens, long-to-short by the chains of
# $length_problems questions.
length() { # arm seed
    local options=() start=$out/countdown/teacher/model rest=$((length_tokens * 16 / 25)) # of hindsight
    case $1 in
        *-taught) start=$out/countdown/taught-$2/model && options=(-o "sampled_tokens=$rest") ;;
        *-said) start=$out/countdown/said-$2/model && options=(-o "sampled_tokens=$rest") ;;
    esac
    case $1 in
        plain) ;;
        exact*) options+=(-o length=lcpo_exact -o "wanted=[24,192]") ;;
        paper*) options+=(-o length=lcpo_exact -o "wanted=[24,192]" -o length_paper=true) ;;
        max*) options+=(-o length=lcpo_max -o "wanted=[24,192]") ;;
        words) options+=(-o length=lcpo_exact -o "wanted=[24,192]" -o effort_words=true) ;;
        words-said) options+=(-o length=lcpo_exact -o "wanted=[24,192]" -o effort_words=true -o length_paper=true) ;;
        kimi | cosine) options=(-o "length=$1") ;;
        overlong) options=(-o overlong_buffer=192) ;;
    esac
    local common=(--task countdown --seed "$2" --out "$out/countdown/$1-$2" "${levels[@]}")
    local few=(-o "problems=$length_problems" -o samples=8 -o eval_problems=0 -o step_tokens=4096 -o epochs=3)
    case $1 in
        shortest)
            "$bin/mull" distill --teacher "$start" --student "$start" --keep shortest "${common[@]}" "${few[@]}" \
                --traces "$out/countdown/traces-$2" -o lr=2e-4 -o most_share=1
            ;;
        taught | taught-right | said)
            local wish=(--keep all -o wishes=tokens)
            [ "$1" != taught-right ] || wish=(--keep right -o wishes=tokens -o lr=2e-4)
            [ "$1" != said ] || wish=(--keep all -o wishes=words -o longest=192)
            "$bin/mull" distill --teacher "$start" --student "$start" "${common[@]}" "${few[@]}" \
                --traces "$out/countdown/traces-$2" -o lr=1e-3 -o most_share=1 "${wish[@]}"
            ;;
        pairs)
            "$bin/mull" dpo --model "$start" --method dpo --strategy sample "${common[@]}" "${few[@]}" -o pairs=short
            ;;
        pairs-nll) # gentler: once over the pairs, and the short chain is imitated, too
            "$bin/mull" dpo --model "$start" --method dpo --strategy sample "${common[@]}" "${few[@]}" -o pairs=short \
                --traces "$out/countdown/pairs-$2/search" -o nll=1 -o epochs=1
            ;;
        *)
            "$bin/mull" rl --model "$start" --steps 2000 "${common[@]}" -o "sampled_tokens=$length_tokens" \
                -o groups=12 "${options[@]}"
            ;;
    esac
    "$bin/python" runs/mini_lengths.py measure "$out" "$1" "$2"
    case $1 in
        taught) for next in paper exact max; do length "$next-taught" "$2"; done ;;
        said) length words-said "$2" ;;
        pairs) length pairs-nll "$2" ;;
    esac
}

# ------------------------------------------------------------------------------------------------ all of it

job() { # what name seed
    case $1 in
        teacher)
            teacher "$2"
            if [ "$2" = chain ]; then
                "$bin/python" runs/mini_evidence.py traces "$out" "$problems" "$tokens"
                "$bin/python" runs/mini_evidence.py measure "$out" teacher 0
            else
                "$bin/python" runs/mini_lengths.py measure "$out" start 0
            fi
            ;;
        student) student "$2" "$3" ;;
        length) length "$2" "$3" ;;
    esac
}
if [ "${2:-}" = job ]; then
    job "$3" "$4" "$5"
    exit
fi
queued() { # teachers|others piece: its jobs
    local seed name
    case $1-$2 in
        teachers-lengths) echo teacher countdown 0 ;;
        others-lengths) for seed in $length_seeds; do for name in $lengths; do echo length "$name" "$seed"; done; done ;;
        teachers-students | teachers-reinforced)
            echo teacher chain 0
            for seed in $seeds; do echo student small "$seed"; done
            ;;
        others-reinforced)
            echo student longer 0 # as the teacher, which is one model
            for seed in $seeds; do echo student rl "$seed"; done
            ;;
        others-students) for seed in $seeds; do for name in $students; do echo student "$name" "$seed"; done; done ;;
        *)
            echo "there is no piece $2: lengths, students and reinforced are" >&2
            return 1
            ;;
    esac
}
# One process a core: training a small model does not use two threads well.
for part in teachers others; do
    queue=$(for piece in $pieces; do queued "$part" "$piece" || exit; done | awk '!seen[$0]++')
    xargs -P 2 -L 1 runs/mini.sh "$out" job <<<"$queue"
done
case $pieces in *students* | *reinforced*) "$bin/python" runs/mini_evidence.py table "$out" ;; esac
case $pieces in *lengths*) "$bin/python" runs/mini_lengths.py table "$out" ;; esac
