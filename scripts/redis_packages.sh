#!/usr/bin/env bash
# Installs the Redis that the tests of shared rate limits start: Debian's redis-server. Does nothing when it is there; never
# fails: the tests that need it say what is missing.
set -uo pipefail

command -v redis-server > /dev/null && exit 0
cure="install the package redis-server (e.g. sudo apt-get install redis-server)"
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
  echo "redis-server is missing: $cure." >&2
  exit 0
fi
echo "Installing redis-server, for the tests of rate limits that replicas share …" >&2
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install --yes --quiet --no-install-recommends redis-server > /dev/null; }
install 2> /dev/null || { apt-get update --quiet > /dev/null && install; } || echo "redis-server could not be installed: $cure." >&2
exit 0
