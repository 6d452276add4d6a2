#!/usr/bin/env bash
# Every training method's figures, one piece after another; each goes on where it was stopped and fits into about two
# hours on two cores (mini is three pieces, of one hour to one and three quarters).
#
#   runs/methods.sh [piece …]
set -euo pipefail
cd "$(dirname "$0")/.."
pieces=("$@")
[ ${#pieces[@]} -gt 0 ] || pieces=(rl_against_sft star credit search_in_the_loop scale reflection mini flywheel)
for piece in "${pieces[@]}"; do
    echo "== $piece"
    "runs/$piece.sh"
done
