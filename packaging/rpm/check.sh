#!/usr/bin/env bash
# Checks an .rpm: contents, and that installation and removal in a scratch root leave nothing.
# Usage: packaging/rpm/check.sh FILE.rpm, as root or under fakeroot.
set -euo pipefail

rpm=$(realpath "$1")
root=$(mktemp -d)
trap 'rm -r "$root"' EXIT
rpm --query --package --list "$rpm" | grep '^/usr/bin/can-sync$' >/dev/null
rpm --query --package --requires "$rpm" | grep '^libc.so' >/dev/null
rpm --root "$root" --initdb
rpm --root "$root" --install --nodeps --noscripts "$rpm"
"$root/usr/bin/can-sync" version
rpm --root "$root" --verify --nodeps can-sync
rpm --root "$root" --erase --noscripts can-sync
left=$(find "$root" -type f -not -path '*rpm*')
[ -z "$left" ] || { echo "left behind: $left" >&2; exit 1; }
echo "$rpm is fine"
