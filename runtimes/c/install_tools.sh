#!/usr/bin/env bash
# Installs what building and testing libedgegen needs and this machine lacks, from Debian's packages: `install_tools.sh native` for the library,
# `aarch64` for the one of 64-bit ARM, `test` also for all tests (cross compilers, emulators, a JDK). Needs root only if something is missing.
set -euo pipefail

declare -A package=(
  [cmake]=cmake [ninja]=ninja-build [g++]=g++ [pkg-config]=pkg-config
  [aarch64-linux-gnu-g++]=g++-aarch64-linux-gnu [arm-linux-gnueabihf-g++]=g++-arm-linux-gnueabihf [qemu-aarch64]=qemu-user [qemu-arm]=qemu-user
  [javac]=openjdk-17-jdk-headless [strace]=strace [gcov]=gcc
)
native="cmake ninja g++"
aarch64="$native aarch64-linux-gnu-g++"
test="$native aarch64-linux-gnu-g++ arm-linux-gnueabihf-g++ qemu-aarch64 qemu-arm javac strace gcov"

missing=""
for tool in ${!1}; do
  command -v "$tool" >/dev/null || missing="$missing ${package[$tool]}"
done
[ -z "$missing" ] && exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
  echo "install_tools.sh: please install:$missing" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null
