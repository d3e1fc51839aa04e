#!/usr/bin/env bash
# Lays the files of a package out below a folder: program, units, man pages, completions, papers.
# Usage: packaging/stage.sh ROOT. BINARY names the program, by default the release build.
set -euo pipefail
cd "$(dirname "$0")/.."

root=$1
binary=${BINARY:-target/release/can-sync}
[ -x "$binary" ] || { echo "no program at $binary: run cargo build --release --locked" >&2; exit 1; }
put() { install -D -m "$1" "$2" "$root/$3"; }

put 755 "$binary" usr/bin/can-sync
strip --strip-unneeded --remove-section=.comment --remove-section=.note "$root/usr/bin/can-sync"
put 644 packaging/systemd/can-sync.user.service usr/lib/systemd/user/can-sync.service
put 644 packaging/systemd/can-sync.system.service usr/lib/systemd/system/can-sync.service
put 644 packaging/systemd/can-sync.sysusers usr/lib/sysusers.d/can-sync.conf
put 644 packaging/desktop/can-sync-pair.desktop usr/share/applications/can-sync-pair.desktop

made=$(mktemp -d)
trap 'rm -r "$made"' EXIT
"$binary" man "$made"
for page in "$made"/*.1; do
    gzip -9n "$page"
    put 644 "$page.gz" "usr/share/man/man1/$(basename "$page").gz"
done
for shell in bash zsh fish; do "$binary" completions "$shell" >"$made/$shell"; done
put 644 "$made/bash" usr/share/bash-completion/completions/can-sync
put 644 "$made/zsh" "${ZSH_COMPLETIONS:-usr/share/zsh/vendor-completions}/_can-sync"
put 644 "$made/fish" usr/share/fish/vendor_completions.d/can-sync.fish
put 644 README.md usr/share/doc/can-sync/README.md
