#!/usr/bin/env bash
# Installs semgrep, for batches of ValidateCode, into .venv-semgrep and says how to set it. Safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/.."
lock=locks/semgrep.txt
venv=.venv-semgrep
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "KALA needs Python 3.11 or newer; $("$python" --version) found. Set PYTHON to a newer one." >&2
  exit 1
}
stamp=$(cat "$lock" scripts/semgrep.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat "$venv/.stamp" 2>/dev/null || true)" != "$stamp" ]; then
  [ -x $venv/bin/python ] || "$python" -m venv $venv
  $venv/bin/pip install --quiet -r "$lock"
  echo "$stamp" > "$venv/.stamp"
fi
echo "KALA_TOOLS_SEMGREP=$PWD/$venv/bin/semgrep"
