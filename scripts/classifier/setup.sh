#!/usr/bin/env bash
# Makes .venv-classifier, the environment that trains the embedded classifier. torch comes first: the rest would pull another.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ ! -e .venv-classifier/.done ]; then
  "${PYTHON:-python3}" -m venv .venv-classifier
  .venv-classifier/bin/pip install --quiet "$(grep '^torch==' scripts/classifier/requirements.txt)"
  .venv-classifier/bin/pip install --quiet -r scripts/classifier/requirements.txt
  touch .venv-classifier/.done
fi
