#!/usr/bin/env bash
# Builds target/package/can-sync_VERSION_ARCH.deb. Needs dpkg-dev. BINARY as for packaging/stage.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."

version=$(packaging/version.sh)-1
arch=$(dpkg --print-architecture)
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
root=$work/root
packaging/stage.sh "$root"
doc=$root/usr/share/doc/can-sync
install -m 644 packaging/deb/copyright "$doc/copyright"
{
    echo "can-sync ($version) unstable; urgency=medium"
    echo
    echo "  * See README.md, and CHANGELOG.md of the source."
    echo
    echo " -- can-sync <can-sync@users.noreply.example>  $(date -uR -d "@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}")"
} | gzip -9n >"$doc/changelog.Debian.gz"
chmod 644 "$doc/changelog.Debian.gz"
install -D -m 644 packaging/deb/lintian-overrides "$root/usr/share/lintian/overrides/can-sync"

# What the program links to, with the least versions that have it.
mkdir "$work/debian"
printf 'Source: can-sync\n\nPackage: can-sync\nArchitecture: any\n' >"$work/debian/control"
depends=$(cd "$work" && dpkg-shlibdeps -O root/usr/bin/can-sync 2>/dev/null | sed -n 's/^shlibs:Depends=//p')

mkdir "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<END
Package: can-sync
Version: $version
Architecture: $arch
Maintainer: can-sync <can-sync@users.noreply.example>
Installed-Size: $(du -sk --apparent-size "$root/usr" | cut -f1)
Depends: $depends
Recommends: systemd
Section: net
Priority: optional
Homepage: https://example.org/can-sync
Description: keeps the files of your devices the same, without a server
 can-sync runs in the background beside a content store on each device. What
 enters one store reaches all the others, over QUIC: directly where the
 devices can reach each other, and elsewhere through a relay that cannot read
 it. No device is special, being offline is normal, and nothing needs an
 account.
 .
 After installation, "can-sync service install" has the agent run for a user.
END
for script in postinst prerm postrm; do install -m 755 "packaging/deb/$script" "$root/DEBIAN/$script"; done
(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
chmod 644 "$root/DEBIAN/md5sums" "$root/DEBIAN/control"
mkdir -p target/package
dpkg-deb --root-owner-group -Zxz --build "$root" "target/package/can-sync_${version}_$arch.deb"
