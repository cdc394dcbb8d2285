#!/usr/bin/env bash
# Trains the demonstration model from nothing, which takes hours on a CPU; stopped, it goes on where it was.
#
#   bash scripts/train_nano.sh [--out DIR] [--steps N] [--evaluate-every STEPS]
#
# One after the other: the autoencoder, the vision encoder, the pools of examples, the transformer. The result is
# DIR/nano.safetensors; as lance_model/nano.safetensors it is the plugin's demonstration model.
set -euo pipefail
source "$(dirname "$0")/../dev/host/host.sh"
exec "$LANCE_PYTHON" -m comfyui_lance.training "$@"
