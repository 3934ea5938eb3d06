#!/usr/bin/env bash
# Installs other people's clients of OpenAI's API, for the tests that drive them, into .venv-clients-openai2 and -openai3.
# Usage: scripts/clients.sh [openai2|openai3 ...]    Safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "KALA needs Python 3.11 or newer; $("$python" --version) found. Set PYTHON to a newer one." >&2
  exit 1
}
[ $# -gt 0 ] || set -- openai2 openai3
for name; do
  lock=locks/clients-$name.txt
  venv=.venv-clients-$name
  stamp=$(cat "$lock" scripts/clients.sh | sha256sum | cut -d' ' -f1)
  if [ "$(cat "$venv/.stamp" 2>/dev/null || true)" != "$stamp" ]; then
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet -r "$lock"
    echo "$stamp" > "$venv/.stamp"
  fi
done
