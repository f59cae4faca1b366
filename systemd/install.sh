#!/bin/sh
# Installs the daemon, what it runs and its units below $DESTDIR$PREFIX; with `remove`, removes that.
# What it has stored (/var/lib/hypeman) and its settings (/etc/hypeman) are never touched.
#
# `just install` and `just uninstall` call it. $PYTHON is the interpreter that the daemon will run on.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
dest=${DESTDIR:-}
prefix=${PREFIX:-/usr}
python=${PYTHON:-/usr/bin/python3}
lib=$prefix/lib/hypeman
units="hypeman.service hypeman.socket hypeman.slice"

remove() {
    for unit in $units; do
        rm -f "$dest$prefix/lib/systemd/system/$unit"
    done
    rm -f "$dest$prefix/lib/sysusers.d/hypeman.conf" "$dest$prefix/lib/tmpfiles.d/hypeman.conf"
    rm -f "$dest$prefix/bin/hypeman-supervisor" "$dest$prefix/bin/hypeman-ctl"
    rm -rf "${dest:?}$lib" "${dest:?}$prefix/share/doc/hypeman"
}

# Writes a launcher that sees the installed packages and the standard library, and nothing of the user's.
launcher() {
    cat >"$dest$lib/bin/$1" <<EOF
#!$python -I
import sys

sys.path.insert(0, "$lib/python")

from $2 import main

main()
EOF
    chmod 0755 "$dest$lib/bin/$1"
    ln -sf "../lib/hypeman/bin/$1" "$dest$prefix/bin/$1"
}

# Puts a file where it belongs, with this installation's prefix in it.
place() {
    sed "s#/usr/lib/hypeman#$lib#g; s#/usr/share/doc#$prefix/share/doc#g" "$here/systemd/$1" >"$dest$2"
    chmod 0644 "$dest$2"
}

install_all() {
    umask 022
    remove
    mkdir -p "$dest$lib/bin" "$dest$lib/images/hypeman/builder" "$dest$prefix/bin" \
        "$dest$prefix/lib/systemd/system" "$dest$prefix/lib/sysusers.d" "$dest$prefix/lib/tmpfiles.d" \
        "$dest$prefix/share/doc/hypeman" "$dest/etc/hypeman"

    # Only what the lock file has, with the hashes that it has; the build backend is in it, too.
    rm -rf "$here/build/lib" "$here/build/wheel"
    python -m pip --disable-pip-version-check -qq wheel --no-deps --no-build-isolation \
        --wheel-dir "$here/build/wheel" "$here"
    uv -q pip install --python "$python" --target "$dest$lib/python" --compile-bytecode \
        --constraints "$here/requirements.lock" "$here"/build/wheel/hypeman-*.whl
    rm -rf "$here/build/lib" "$here/build/wheel"
    launcher hypeman-supervisor supervisor.daemon.cli
    launcher hypeman-ctl supervisor.ctl.cli

    # The distribution's, if it has one, is on PATH already.
    if [ -x "$here/build/tools/bin/vhost-device-vsock" ]; then
        install -m 0755 "$here/build/tools/bin/vhost-device-vsock" "$dest$lib/bin/"
    fi
    image=$(readlink -f "$here/build/images/hypeman/builder/latest")
    cp -R --reflink=auto "$image" "$dest$lib/images/hypeman/builder/"
    ln -sfn "$(basename "$image")" "$dest$lib/images/hypeman/builder/latest"
    chmod -R u=rwX,go=rX "$dest$lib/images"

    for unit in $units; do
        place "$unit" "$prefix/lib/systemd/system/$unit"
    done
    place sysusers.d/hypeman.conf "$prefix/lib/sysusers.d/hypeman.conf"
    place tmpfiles.d/hypeman.conf "$prefix/lib/tmpfiles.d/hypeman.conf"
    [ -e "$dest/etc/hypeman/hypeman.toml" ] || place hypeman.toml /etc/hypeman/hypeman.toml
    install -m 0644 "$here"/docs/*.md "$dest$prefix/share/doc/hypeman/"

    if [ -z "$dest" ] && [ -d /run/systemd/system ]; then
        systemd-sysusers
        systemd-tmpfiles --create "$prefix/lib/tmpfiles.d/hypeman.conf"
        systemctl daemon-reload
        echo "Installed. Next: systemctl enable --now hypeman.socket hypeman.service" >&2
    fi
}

case ${1:-} in
    '') install_all ;;
    remove) remove ;;
    *) echo "usage: $0 [remove]" >&2 && exit 2 ;;
esac
