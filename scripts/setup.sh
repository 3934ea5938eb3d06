#!/usr/bin/env bash
# Makes .venv for one lock file ("suite" or "dev"). Safe to repeat; does nothing when the lock has not changed.
set -euo pipefail
cd "$(dirname "$0")/.."
extra=${1:?usage: scripts/setup.sh suite|dev}
lock=locks/$extra.txt
venv=.venv
python=${PYTHON:-python3}
# The embedded model's version of torch. Installed first: a later package would otherwise pull a build of several GB.
torch=torch==2.13.0

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "KALA needs Python 3.11 or newer; $("$python" --version) found. Set PYTHON to a newer one." >&2
  exit 1
}
scripts/sandbox_packages.sh
[ -x $venv/bin/python ] || "$python" -m venv $venv
stamp=$(cat "$lock" pyproject.toml scripts/setup.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat "$venv/.$extra" 2>/dev/null || true)" = "$stamp" ]; then touch "$venv/.$extra"; exit 0; fi

echo "Setting up $venv for $extra (a few minutes the first time) …" >&2
$venv/bin/python -c 'import torch' 2>/dev/null || $venv/bin/pip install --quiet "$torch"
$venv/bin/pip install --quiet -r "$lock"
$venv/bin/pip install --quiet --no-deps -e .
# The development set is a superset of the suite's.
if [ "$extra" = dev ]; then cat locks/suite.txt pyproject.toml scripts/setup.sh | sha256sum | cut -d' ' -f1 > $venv/.suite; fi
echo "$stamp" > "$venv/.$extra"
