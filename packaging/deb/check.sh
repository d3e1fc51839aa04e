#!/usr/bin/env bash
# Checks a .deb: contents, lintian, man pages, units, and that installation and removal in a scratch
# root leave nothing. Usage: packaging/deb/check.sh FILE.deb, as root or under fakeroot.
set -euo pipefail

deb=$1
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

dpkg-deb --extract "$deb" "$work/contents"
for file in usr/bin/can-sync usr/lib/systemd/user/can-sync.service usr/lib/systemd/system/can-sync.service \
    usr/lib/sysusers.d/can-sync.conf usr/share/applications/can-sync-pair.desktop usr/share/man/man1/can-sync.1.gz \
    usr/share/bash-completion/completions/can-sync usr/share/zsh/vendor-completions/_can-sync \
    usr/share/fish/vendor_completions.d/can-sync.fish usr/share/doc/can-sync/copyright; do
    [ -s "$work/contents/$file" ] || { echo "missing: $file" >&2; exit 1; }
done
"$work/contents/usr/bin/can-sync" version

if command -v lintian >/dev/null; then lintian --fail-on error,warning --allow-root "$deb"; fi
for page in "$work"/contents/usr/share/man/man1/*.gz; do
    said=$(LC_ALL=C.UTF-8 MANWIDTH=80 man --warnings --local-file "$page" 2>&1 >/dev/null)
    [ -z "$said" ] || { echo "$page: $said" >&2; exit 1; }
done
if command -v desktop-file-validate >/dev/null; then
    desktop-file-validate "$work/contents/usr/share/applications/can-sync-pair.desktop"
fi
if command -v systemd-analyze >/dev/null; then
    for kind in user system; do
        unit=$work/contents/usr/lib/systemd/$kind/can-sync.service
        sed -i "s#^ExecStart=/usr/bin#ExecStart=$work/contents/usr/bin#" "$unit"
        systemd-analyze security --offline=true --threshold=20 "$unit" | tail -1
        systemd-analyze verify --man=no "$unit"
    done
fi

root=$work/root
mkdir -p "$root/var/lib/dpkg/info" "$root/var/lib/dpkg/updates"
touch "$root/var/lib/dpkg/status"
find "$root" | sort >"$work/before"
in_root() { dpkg --root="$root" --log="$work/log" --force-depends --force-script-chrootless "$@"; }
in_root --install "$deb" >/dev/null 2>&1
[ -x "$root/usr/bin/can-sync" ]
in_root --purge can-sync >/dev/null 2>&1
find "$root" -path "$root/var/lib/dpkg" -prune -o -print | sort >"$work/after"
left=$(grep -v -x -F -f "$work/before" "$work/after" || true)
[ -z "$left" ] || { echo "left behind: $left" >&2; exit 1; }
echo "$deb is fine"
