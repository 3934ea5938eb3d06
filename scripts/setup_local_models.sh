#!/usr/bin/env bash
# Gets small local models for mlx_lm.server and llama-server into models/, by `kala models pull`, which holds every file
# against its checksum. Then MLX_MODEL_PATH and LLAMACPP_MODEL_PATH may name them, and KALA starts the server itself.
#
#   scripts/setup_local_models.sh --with-mlx llama-3.2-1b-instruct
#   scripts/setup_local_models.sh --with-mlx --with-llamacpp --all-models
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
kala=${KALA_COMMAND:-$here/.venv/bin/kala}
[ -x "$(command -v "$kala")" ] || kala=kala
folder=${KALA_LOCAL_MODELS:-models}

known="llama-3.2-1b-instruct llama-3.2-3b-instruct"
mlx_source() {
  case $1 in
    llama-3.2-1b-instruct) echo mlx-community/Llama-3.2-1B-Instruct-4bit ;;
    llama-3.2-3b-instruct) echo mlx-community/Llama-3.2-3B-Instruct-4bit ;;
  esac
}
gguf_source() {
  case $1 in
    llama-3.2-1b-instruct) echo bartowski/Llama-3.2-1B-Instruct-GGUF/Llama-3.2-1B-Instruct-Q4_K_M.gguf ;;
    llama-3.2-3b-instruct) echo bartowski/Llama-3.2-3B-Instruct-GGUF/Llama-3.2-3B-Instruct-Q4_K_M.gguf ;;
  esac
}
usage() {
  echo "usage: $0 [--with-mlx] [--with-llamacpp] (--all-models | MODEL …)" >&2
  echo "models: $known; any other one with \`kala models pull\`" >&2
  exit 2
}

with_mlx= with_llamacpp= models=
for argument in "$@"; do
  case $argument in
    --with-mlx) with_mlx=1 ;;
    --with-llamacpp) with_llamacpp=1 ;;
    --all-models) models=$known ;;
    -*) usage ;;
    *)
      [ -n "$(mlx_source "$argument")" ] || usage
      models="$models $argument"
      ;;
  esac
done
[ -n "$with_mlx$with_llamacpp" ] && [ -n "$models" ] || usage

for model in $models; do
  if [ -n "$with_mlx" ]; then
    source=$(mlx_source "$model")
    "$kala" models pull "$source" --to "$folder/mlx"
    ln -sfn "$(basename "$source")" "$folder/mlx/$model"
    echo "MLX_MODEL_PATH=$folder/mlx/$model"
  fi
  if [ -n "$with_llamacpp" ]; then
    source=$(gguf_source "$model")
    repository=${source%/*}
    "$kala" models pull "$source" --to "$folder/gguf"
    ln -sfn "$(basename "$repository")/$(basename "$source")" "$folder/gguf/$model.gguf"
    echo "LLAMACPP_MODEL_PATH=$folder/gguf/$model.gguf"
  fi
done
