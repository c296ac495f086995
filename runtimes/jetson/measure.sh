#!/usr/bin/env bash
# From a fresh JetPack (6.1 or newer) to a measured table: run this on a Jetson, from anywhere in a clone of edgegen.
#
# It says what each step does, installs what apt can (with sudo), builds libedgegen and edgegen-jetson, takes or builds a bundle, checks its golden
# vectors, times it with ONNX Runtime on the CPU and with TensorRT on the GPU, and prints a table for docs/benchmarks.md. It stops with one sentence at the
# first thing that is missing. Clocks and power mode stay as they are. Exit codes: 0 ok, 1 a step failed, 2 usage, 4 this machine cannot do it.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: runtimes/jetson/measure.sh [options]
  --bundle FILE      the bundle to measure (default: digits, built here, which needs torch and takes a while)
  --set NAME=VALUE   a condition; may repeat (digits: label=3)
  --steps N          pick the program with so many steps
  --batch N          samples of one run (1)
  --iters N          timed runs of each row (100)
  --networks LIST    for TensorRT, separated by commas (all that the bundle gives: float32,float16,int8)
  --ort-headers DIR  of onnxruntime_c_api.h, 1.20 or newer (default: Debian's package, else ONNX Runtime's release)
  --dry-run          list the steps and do nothing
TEXT
}

say() { printf '%s\n' "$*" >&2; }

stop() { # stop CODE SENTENCE
  say "measure.sh: $2"
  exit "$1"
}

bundle="" batch=1 iters=100 networks="" headers="" dry=0
settings=() program=()
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=1 ;;
    -h | --help) usage && exit 0 ;;
    --bundle | --set | --steps | --batch | --iters | --networks | --ort-headers)
      [ $# -ge 2 ] || stop 2 "$1: expected a value behind it; see --help"
      case $1 in
        --bundle) bundle=$(realpath -m -- "$2") ;;
        --set) settings+=(--set "$2") ;;
        --steps) program=(--steps "$2") ;;
        --batch) batch=$2 ;;
        --iters) iters=$2 ;;
        --networks) networks=${2//,/ } ;;
        --ort-headers) headers=$(realpath -m -- "$2") ;;
      esac
      shift
      ;;
    *) stop 2 "$1: unknown option; see --help" ;;
  esac
  shift
done

for value in "$batch" "$iters"; do
  [[ $value =~ ^[1-9][0-9]{0,5}$ ]] || stop 2 "'$value': --batch and --iters take a whole number, at least 1"
done

cd "$(dirname "$(realpath "$0")")/../.."
root=${EDGEGEN_TEST_ROOT:-} # where /etc and /usr are, for the tests of this script
build=build/jetson venv=build/jetson-venv ort_release=1.21.0
release="$root/etc/nv_tegra_release"
[ -n "$headers" ] || headers=$PWD/build/ort-headers

number=0
step() { # step TEXT: say what comes; false in a dry run
  number=$((number + 1))
  say "$number. $1"
  [ "$dry" = 0 ]
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

install_packages() { # install_packages WHY PACKAGE...
  local why=$1
  shift
  command -v apt-get >/dev/null || stop 4 "there is no apt-get to install $* with ($why); install it and run this again"
  say "   installing $* ($why)"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
    { as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null; } ||
    stop 1 "apt cannot install $* ($why); its message is above; install it and run this again"
}

check_device() {
  [ -f "$release" ] || stop 4 "this machine is no Jetson: it has no /etc/nv_tegra_release; run this on one (a Jetson Orin or Thor with JetPack 6.1 or newer)"
  local l4t
  l4t=$(sed -n 's/^# R\([0-9]*\) (release), REVISION: \([0-9.]*\).*/\1.\2/p' "$release" | head -n 1)
  case ${l4t%%.*} in
    36) jetpack="JetPack 6 (L4T $l4t)" ;;
    3[7-9] | [4-9][0-9]) jetpack="JetPack 7 or newer (L4T $l4t)" ;;
    "") stop 4 "/etc/nv_tegra_release names no release that this script knows; report its first line" ;;
    *) stop 4 "L4T $l4t is too old: it comes before JetPack 6, and TensorRT 10 is needed; flash JetPack 6.1 or newer" ;;
  esac
  [ "$(uname -m)" = aarch64 ] || stop 4 "this is $(uname -m), and a Jetson is aarch64; run this on the Jetson itself"
  board=$(tr -d '\0' <"$root/proc/device-tree/model" 2>/dev/null || echo "a Jetson")
  say "   $board, $jetpack"
}

check_tools() {
  local wanted=()
  command -v cmake >/dev/null || wanted+=(cmake)
  command -v ninja >/dev/null || wanted+=(ninja-build)
  command -v g++ >/dev/null || wanted+=(g++)
  command -v curl >/dev/null || wanted+=(curl ca-certificates)
  [ ${#wanted[@]} = 0 ] || install_packages "to build" "${wanted[@]}"
}

find_python() { # the newest Python from 3.11 on that can make virtual environments
  local name
  for name in python3.14 python3.13 python3.12 python3.11 python3; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return 0
    fi
  done
  return 1
}

check_python() {
  python=$(find_python) && return 0
  if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    install_packages "Python's virtual environments" python3-venv
  else
    install_packages "edgegen needs Python 3.11, JetPack 6 has 3.10" python3.11 python3.11-venv
  fi
  python=$(find_python) || stop 4 "no Python 3.11 or newer with venv was found after installing it; install python3.11-venv and run this again"
}

find_header() { # find_header NAME: its path, or nothing
  local folder
  for folder in "$root/usr/include/aarch64-linux-gnu" "$root/usr/include" "$root/usr/local/cuda/include"; do
    [ ! -f "$folder/$1" ] || { echo "$folder/$1" && return 0; }
  done
}

check_sdk() {
  if [ -z "$(find_header NvInfer.h)" ] || [ -z "$(find_header NvOnnxParser.h)" ] || [ -z "$(find_header cuda_runtime_api.h)" ]; then
    install_packages "TensorRT and CUDA with their headers, some GB" nvidia-jetpack
  fi
  local name version
  for name in NvInfer.h NvOnnxParser.h cuda_runtime_api.h; do
    [ -n "$(find_header $name)" ] || stop 4 "$name is still missing after installing nvidia-jetpack; install libnvinfer-dev, libnvonnxparsers-dev and the CUDA toolkit"
  done
  version=$(sed -n 's/^#define \(NV_TENSORRT_MAJOR\|TRT_MAJOR_ENTERPRISE\) *\([0-9][0-9]*\).*/\2/p' "$(find_header NvInferVersion.h)" | head -n 1)
  [ "${version:-0}" -ge 10 ] || stop 4 "TensorRT ${version:-of an unknown version} is too old, 10 or newer is needed; flash JetPack 6.1 or newer"
  say "   TensorRT $version"
}

get_headers() {
  [ ! -f "$headers/onnxruntime_c_api.h" ] || return 0
  runtimes/c/get_onnxruntime_headers.sh "$headers" 2>/dev/null && return 0
  local url=https://github.com/microsoft/onnxruntime/releases/download/v$ort_release/onnxruntime-linux-aarch64-$ort_release.tgz
  mkdir -p "$headers"
  curl -fsSL "$url" | tar -xz -C "$headers" --strip-components=2 --wildcards '*/include/*.h' ||
    stop 1 "ONNX Runtime's headers cannot be had from $url; put onnxruntime_c_api.h into a folder and give it with --ort-headers DIR"
}

build_native() {
  cmake -G Ninja -S runtimes/jetson -B $build -DEDGEGEN_ORT_INCLUDE="$headers" >$build.log 2>&1 || stop 1 "cmake cannot configure edgegen-jetson; $build.log says why"
  cmake --build $build >>$build.log 2>&1 || stop 1 "edgegen-jetson cannot be built; the end of $build.log says why"
  [ -x $build/edgegen-jetson ] || stop 4 "$(sed -n 's/^-- \(edgegen-jetson is not built.*\)/\1/p' $build.log | tail -n 1)"
}

test_cache() {
  local folder
  folder=$(mktemp -d)
  $build/engine_cache_test attack "$folder" >/dev/null || stop 1 "the engine cache does not hold what it promises on this device; report the output of $build/engine_cache_test attack DIR"
  rm -rf "$folder"
}

make_venv() {
  [ -x $venv/bin/pip ] || "$python" -m venv --clear $venv || stop 1 "$python cannot make a virtual environment in $venv; its message is above"
  $venv/bin/pip install --quiet --disable-pip-version-check -e '.[cpu]' || stop 1 "pip cannot install edgegen and onnxruntime; its message is above"
}

get_bundle() {
  if [ -z "$bundle" ]; then
    bundle=$PWD/$build/digits.edgegen
    [ ${#settings[@]} != 0 ] || settings=(--set label=3)
    if [ ! -f "$bundle" ]; then
      $venv/bin/pip install --quiet --disable-pip-version-check -e '.[torch]' || stop 1 "pip cannot install torch; build a bundle on a PC (edgegen build digits) and give it with --bundle"
      $venv/bin/edgegen build digits -o "$bundle" >&2 || stop 1 "digits cannot be built here; build it on a PC (edgegen build digits) and give it with --bundle"
    fi
  fi
  [ -f "$bundle" ] || stop 2 "$bundle is not there; give a bundle with --bundle"
}

make_networks() {
  local made
  made=$($venv/bin/python runtimes/jetson/networks.py "$bundle" $build/networks) || stop 1 "the bundle's networks cannot be written as ONNX for TensorRT; the reason is above"
  [ -n "$networks" ] || networks=$(tr '\n' ' ' <<<"$made")
}

tune() { # which form and how many threads are fastest on this CPU
  $venv/bin/edgegen tune "$bundle" -o $build/tuned.edgegen >&2 || stop 1 "edgegen tune failed on this device; the reason is above"
}

row() { printf '%s\n' "$1" >>$build/measured.md; }

time_cpu() {
  local library variant line
  library=$(find "$PWD/$venv" -name 'libonnxruntime.so*' -type f | head -n 1)
  for variant in $($build/edgegen/edgegen-run inspect $build/tuned.edgegen | sed -n 's/^variant \([^:]*\): onnxruntime, .*/\1/p'); do
    say "   $variant"
    if line=$($build/edgegen/edgegen-run bench $build/tuned.edgegen --variant "$variant" --batch "$batch" --iters "$iters" --onnxruntime "$library" "${program[@]}" "${settings[@]}"); then
      row "$(sed -n 's/^\([^ ]*\) \([^ ]*\) batch \([0-9]*\): p50 \([0-9.]*\) ms, p90 \([0-9.]*\) ms, p99 \([0-9.]*\) ms, outside the networks \([0-9.]*%\),.*/| ONNX Runtime CPU | \1 | \2 | \3 | \4 | \5 | \6 | \7 |/p' <<<"$line")"
    else
      row "| ONNX Runtime CPU | $variant | not measured: edgegen-run failed | | | | | |"
    fi
  done
}

time_gpu() {
  local network lines
  for network in $networks; do
    say "   $network"
    if lines=$($build/edgegen-jetson "$bundle" --networks $build/networks --network "$network" --bench --batch "$batch" --iters "$iters" "${program[@]}" "${settings[@]}" 2>$build/tensorrt.log); then
      device=$(sed -n 's/^device: [^;]*; //p' $build/tensorrt.log)
      row "$(grep '^| TensorRT' <<<"$lines")"
    else
      row "| TensorRT | $network | not measured: $(tail -n 1 $build/tensorrt.log | tr '|' '/') | | | | | |"
    fi
    sed 's/^/   /' $build/tensorrt.log >&2
  done
}

print_table() {
  local ort
  ort=$($venv/bin/python -c 'import onnxruntime; print(onnxruntime.__version__)')
  printf '%s, %s, %s; ONNX Runtime %s; %s; edgegen %s.\n\n' "$(date -u +%F)" "${board:-}" "${jetpack:-}" "$ort" "${device:-no engine of TensorRT ran}" \
    "$(git rev-parse --short HEAD 2>/dev/null || echo 'of unknown commit')"
  printf '%s\n' "| engine | network | program | batch | p50 ms | p90 ms | p99 ms | outside the networks |" "|---|---|---|---|---|---|---|---|"
  cat $build/measured.md
}

mkdir_build() {
  mkdir -p $build
  : >$build/measured.md
}

if step "Check that this is a Jetson with JetPack 6 or newer"; then check_device; fi
if step "Check for cmake, ninja, g++ and curl; install what is missing with apt"; then check_tools; fi
if step "Check for Python 3.11 or newer with venv; install it with apt (beside the system's, which stays)"; then check_python; fi
if step "Check for the headers of TensorRT 10 or newer and CUDA; install nvidia-jetpack with apt if they are missing"; then check_sdk; fi
if step "Fetch the headers of ONNX Runtime's C API into ${headers#"$PWD"/}"; then get_headers; fi
if step "Build libedgegen and edgegen-jetson in $build"; then mkdir_build && build_native; fi
if step "Test the engine cache on this device: nothing that was tampered with is opened"; then test_cache; fi
if step "Make $venv with edgegen and ONNX Runtime"; then make_venv; fi
if step "Take the bundle ${bundle:-digits, building it here (torch is installed for that)}"; then get_bundle; fi
if step "Write its networks as ONNX for TensorRT into $build/networks: float32, float16, int8"; then make_networks; fi
if step "Find the fastest form and threads on the CPU: edgegen tune"; then tune; fi
if step "Time each variant with ONNX Runtime on the CPU: $iters runs, batch $batch"; then time_cpu; fi
if step "Build an engine of each network on this GPU, check golden vectors, time it with TensorRT: $iters runs, batch $batch"; then time_gpu; fi
if step "Print the table for docs/benchmarks.md"; then print_table; fi
