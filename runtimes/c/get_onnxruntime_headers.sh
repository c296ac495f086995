#!/usr/bin/env bash
# Puts the headers of ONNX Runtime's C API into a folder: get_onnxruntime_headers.sh DIR. Only headers: the library itself is found when a program runs.
#
# They are Debian's package libonnxruntime-dev: this system's own, if its suite has it, else the one of the suite trixie from the same mirror, unpacked
# and not installed.
set -euo pipefail
out=$1
[ -f "$out/onnxruntime_c_api.h" ] && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fetch() { (cd "$work" && apt-get "$@" -qq download libonnxruntime-dev 2>/dev/null && ls libonnxruntime-dev_*.deb >/dev/null 2>&1); }

if ! fetch; then
  mirror=$(awk '/^URIs:/ {print $2; exit}' /etc/apt/sources.list.d/*.sources 2>/dev/null || true)
  [ -n "$mirror" ] || mirror=$(awk '/^deb / {for (i = 2; i <= NF; ++i) if ($i ~ /^[a-z]+:\/\//) {print $i; exit}}' /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null || true)
  if [ -z "$mirror" ]; then
    echo "get_onnxruntime_headers.sh: no Debian mirror in /etc/apt; take onnxruntime_c_api.h from ONNX Runtime 1.20 or newer and configure with -DEDGEGEN_ORT_INCLUDE=DIR" >&2
    exit 1
  fi
  mkdir -p "$work"/{etc/sources.list.d,etc/preferences.d,state/lists/partial,cache/archives/partial}
  printf 'Types: deb\nURIs: %s\nSuites: trixie\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' "$mirror" > "$work/etc/sources.list.d/trixie.sources"
  apart=(-o "Dir::Etc=$work/etc" -o "Dir::State=$work/state" -o "Dir::Cache=$work/cache")
  apt-get "${apart[@]}" -qq update
  fetch "${apart[@]}" || { echo "get_onnxruntime_headers.sh: libonnxruntime-dev cannot be downloaded from $mirror" >&2; exit 1; }
fi
dpkg-deb -x "$work"/libonnxruntime-dev_*.deb "$work/unpacked"
mkdir -p "$out"
cp "$work"/unpacked/usr/include/onnxruntime/*.h "$out/"
