#!/usr/bin/env bash
# Lints the contracts, proves that the committed code is generated from them, and that nothing released breaks.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
image=build/contracts.binpb
$bin/python scripts/genproto.py --image $image
$bin/buf lint $image --config protos/buf.yaml

before=$(git status --porcelain -- kala)
$bin/python scripts/genproto.py > /dev/null
after=$(git status --porcelain -- kala)
if [ "$before" != "$after" ]; then
  echo "Generated code is not up to date: run 'make proto' and commit kala/." >&2
  git --no-pager diff --stat -- kala >&2
  exit 1
fi

$bin/python scripts/gencomments.py --check

# Breaking changes count from the first release on.
released=$(git tag --list 'v[0-9]*' --sort=-v:refname | head -n 1)
if [ -n "$released" ]; then
  old=$(mktemp -d)
  trap 'rm -rf "$old"' EXIT
  git archive "$released" protos scripts/genproto.py | tar -x -C "$old"
  $bin/python "$old/scripts/genproto.py" --image "$old/released.binpb"
  $bin/buf breaking $image --against "$old/released.binpb" --config protos/buf.yaml
fi
echo "Contracts are clean."
