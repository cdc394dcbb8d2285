#!/usr/bin/env bash
# Makes the demonstration model that ships from nothing, in four trainings, each of which goes on from the one before.
#
#   bash scripts/train_shipped.sh DIR
#
# It takes some five hours of two cores; stopped, it goes on where it was. The result is DIR/nano.safetensors.
set -euo pipefail
out=${1:?"Give a folder for the trainings: bash scripts/train_shipped.sh DIR"}
source "$(dirname "$0")/../dev/host/host.sh"

training() { # FOLDER OPTION...
    [ -e "$out/$1/nano.safetensors" ] || "$LANCE_PYTHON" -m comfyui_lance.training --out "$out/$1" "${@:2}"
}

onward=(--autoencoder-steps 0 --steps 1500 --rate 1.2e-3 --reinforcement-rounds 0 --result-prompts 0)
training A --steps 4000 --edits 6000 --evaluate-every 1000 --reinforcement-rounds 0 --result-prompts 0
training B --start "$out/A/nano.safetensors" --edits 4000 --seed 1 "${onward[@]}"
training C --start "$out/B/nano.safetensors" --edits 6000 "${onward[@]}"
training D --start "$out/C/nano.safetensors" --autoencoder-steps 2000 --steps 2000 --edits 6000 --seed 3 --rate 1.2e-3
cp "$out/D/nano.safetensors" "$out/nano.safetensors"
"$LANCE_PYTHON" -m comfyui_lance.training.chart "$out"/{A,B,C,D} >"$out/progress.svg"
