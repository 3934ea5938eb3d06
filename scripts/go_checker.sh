#!/usr/bin/env bash
# Builds Go's checker of the audit log: scripts/go_checker.sh OUT. Installs Go and its transparency-log packages where they are
# missing, from Debian alone: nothing is fetched from a module proxy.
set -euo pipefail

out=$(realpath -m "$1")
root=$(cd "$(dirname "$0")/.." && pwd)
packages=/usr/share/gocode
cure="install the packages golang-go and golang-golang-x-mod-dev (e.g. sudo apt-get install golang-go golang-golang-x-mod-dev)"
if ! command -v go > /dev/null || [ ! -d "$packages/src/golang.org/x/mod/sumdb/tlog" ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    echo "Go or its package sumdb is missing: $cure." >&2
    exit 1
  fi
  echo "Installing Go, the second opinion on the audit log …" >&2
  export DEBIAN_FRONTEND=noninteractive
  install() { apt-get install --yes --quiet --no-install-recommends golang-go golang-golang-x-mod-dev > /dev/null; }
  install 2> /dev/null || { apt-get update --quiet > /dev/null && install; } || { echo "Go could not be installed: $cure." >&2; exit 1; }
fi
# Without modules: Debian keeps its packages as a GOPATH, and the proxy is not asked.
export GO111MODULE=off GOPATH=$packages GOFLAGS=-trimpath GOPROXY=off
export GOCACHE=${GOCACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/go-build}
cd "$root/tests/go"
exec go build -o "$out" .
