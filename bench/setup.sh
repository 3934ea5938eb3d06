#!/usr/bin/env bash
# Installs what the bench needs beside KALA: nginx as the static upstream, LiteLLM proxy and the Portkey gateway in their own environments.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v nginx > /dev/null && [ ! -x /usr/sbin/nginx ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light
fi
if [ ! -x .venv-litellm/bin/litellm ]; then
  "${PYTHON:-python3}" -m venv .venv-litellm
  .venv-litellm/bin/pip install --quiet -r bench/litellm.txt
fi
if command -v npm > /dev/null && [ ! -d .venv-portkey/node_modules/@portkey-ai/gateway ]; then
  npm install --silent --no-fund --no-audit --prefix .venv-portkey @portkey-ai/gateway@1.15.2
fi
