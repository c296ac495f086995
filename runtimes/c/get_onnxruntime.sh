#!/usr/bin/env bash
# Puts libonnxruntime of another version or machine into a folder, for tests: get_onnxruntime.sh PIP FOLDER/VERSION-MACHINE, such as
# build/ort/1.24.4-aarch64. It is the library inside the Python package's wheel.
set -euo pipefail
pip=$1 out=$2
name=$(basename "$out")
version=${name%-*} machine=${name##*-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do platforms+=(--platform "${tag}_$machine"); done
"$pip" download --quiet --disable-pip-version-check --no-deps --only-binary=:all: "${platforms[@]}" --python-version 3.11 -d "$work" "onnxruntime==$version"
python3 -m zipfile -e "$work"/*.whl "$work/unpacked"
mkdir -p "$out"
mv "$work"/unpacked/onnxruntime/capi/libonnxruntime.so.* "$out/libonnxruntime.so.$version"
