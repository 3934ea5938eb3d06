#!/usr/bin/env bash
# Installs what the sandbox of the tools service needs from the system: bubblewrap. Does nothing when it is there; never fails:
# without it everything runs but tools, which say so.
set -uo pipefail

[ "$(uname -s)" = Linux ] || exit 0
command -v bwrap > /dev/null && exit 0
cure="install the package bubblewrap (e.g. sudo apt-get install bubblewrap), or tools will not run"
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
  echo "bubblewrap is missing: $cure." >&2
  exit 0
fi
echo "Installing bubblewrap, the sandbox of the tools service …" >&2
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install --yes --quiet --no-install-recommends bubblewrap > /dev/null; }
install 2> /dev/null || { apt-get update --quiet > /dev/null && install; } || echo "bubblewrap could not be installed: $cure." >&2
exit 0
