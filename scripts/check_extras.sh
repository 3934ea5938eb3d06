#!/usr/bin/env bash
# Installs each image's extra alone in its own environment and imports its process: an undeclared dependency shows here.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
declare -A module=([audit]="services.audit.__main__, services.audit.witness.__main__"
  [audit-pii]="services.audit.__main__, services.audit.privacy.presidio_finder" [ethics]=services.ethics.__main__
  [evaluation]=services.ethics.evaluation.__main__
  [inference]=services.inference.__main__ [gateway]=gateway.__main__
  [tools]=services.tools.__main__ [trainer]=services.trainer.__main__)
for extra in "${!module[@]}"; do
  "$python" -m venv "$folder/$extra"
  "$folder/$extra/bin/pip" install --quiet -r "locks/$extra.txt"
  "$folder/$extra/bin/pip" install --quiet --no-deps .
  (cd "$folder" && "$folder/$extra/bin/python" -c "import ${module[$extra]}")
  "$folder/$extra/bin/pip" check --quiet
  echo "$extra: installs alone and imports"
done
