#!/usr/bin/env bash
# Builds target/package/can-sync-VERSION-1.ARCH.rpm. Needs rpmbuild. BINARY as for packaging/stage.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
ZSH_COMPLETIONS=usr/share/zsh/site-functions packaging/stage.sh "$work/staged"
mkdir -p target/package
rpmbuild -bb packaging/rpm/can-sync.spec --quiet \
    --define "_topdir $work/top" \
    --define "_rpmdir $PWD/target/package" \
    --define "_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm" \
    --define "debug_package %{nil}" \
    --define "__os_install_post %{nil}" \
    --define "staged $work/staged" \
    --define "version_given $(packaging/version.sh)"
ls target/package/*.rpm
