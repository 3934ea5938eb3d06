#!/usr/bin/env bash
# Loads LMSTUDIO_MODEL into LM Studio with a context of LMSTUDIO_MAX_CONTEXT tokens, through the suite that runs here.
# Both come from the environment, else from .env in this directory; a model may be given as the argument instead.
# Further options go to `kala models load`. A model's own LMSTUDIO_CONTEXT_LENGTH_<SLUG> is the suite's to apply.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
kala=${KALA_COMMAND:-$here/.venv/bin/kala}
[ -x "$(command -v "$kala")" ] || kala=kala

setting() { # the value of the first of these names, from the environment or .env; nothing is executed
  local name value
  for name in "$@"; do
    value=${!name:-}
    if [ -z "$value" ] && [ -r .env ]; then
      value=$(sed -nE "s/^[[:space:]]*(export[[:space:]]+)?$name[[:space:]]*=[[:space:]]*[\"']?([^\"'#]*[^\"'#[:space:]])[\"']?.*$/\2/p" .env | tail -n 1)
    fi
    if [ -n "$value" ]; then
      printf '%s' "$value"
      return
    fi
  done
}

model=
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  model=$1
  shift
fi
model=${model:-$(setting LMSTUDIO_MODEL LM_STUDIO_MODEL)}
if [ -z "$model" ]; then
  echo "set LMSTUDIO_MODEL in .env or name a model: $0 qwen/qwen3-4b-2507" >&2
  exit 2
fi
context=$(setting LMSTUDIO_MAX_CONTEXT LMSTUDIO_CONTEXT_LENGTH)
exec "$kala" models load "$model" --backend lmstudio ${context:+--context "$context"} "$@"
