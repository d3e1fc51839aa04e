#!/usr/bin/env bash
# Builds target/package/can-sync-VERSION-MACHINE-SYSTEM.tar.gz. BINARY as for packaging/stage.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."

name=can-sync-$(packaging/version.sh)-$(uname -m)-$(uname -s | tr '[:upper:]' '[:lower:]')
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
packaging/stage.sh "$work/$name"
# Whoever unpacks it puts the files where the system wants them.
(
    cd "$work/$name"
    mv usr/bin usr/share/man .
    mkdir completions systemd
    mv usr/share/bash-completion/completions/can-sync completions/can-sync.bash
    mv usr/share/zsh/vendor-completions/_can-sync usr/share/fish/vendor_completions.d/can-sync.fish completions
    mv usr/lib/systemd/user/can-sync.service systemd/can-sync.user.service
    mv usr/lib/systemd/system/can-sync.service systemd/can-sync.system.service
    rm -r usr
)
cp README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE "$work/$name"
mkdir -p target/package
time=$(git log -1 --format=%ct)
tar --create --gzip --file "target/package/$name.tar.gz" --directory "$work" --sort=name \
    --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-$time}" "$name"
echo "built target/package/$name.tar.gz"
