#!/usr/bin/env bash
# nano-base, the model that ships: pretrained from scratch on the five tasks' imperfect solutions, then measured.
# About an hour on two CPU cores; stop it at will, the same command goes on. Writes docs/evidence/nano-base.json.
#
#   runs/nano.sh [run folder] [further options of `mull pretrain`]
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=passive
out=${1:-runs/nano}
mull=${MULL:-.venv/bin/mull}
"$mull" pretrain --out "$out" --resume "${@:2}"
"$(dirname "$mull")/python" runs/nano_evidence.py "$out/model"
echo "to ship it: rm -r src/mull/nano && cp -r $out/model src/mull/nano"
