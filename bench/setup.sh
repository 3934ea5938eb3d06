#!/usr/bin/env bash
# Installs what the bench needs beside KALA: nginx as the static upstream, LiteLLM proxy in its own environment.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v nginx > /dev/null && [ ! -x /usr/sbin/nginx ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light
fi
if [ ! -x .venv-litellm/bin/litellm ]; then
  "${PYTHON:-python3}" -m venv .venv-litellm
  .venv-litellm/bin/pip install --quiet -r bench/litellm.txt
fi
