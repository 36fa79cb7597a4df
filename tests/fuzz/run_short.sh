#!/bin/bash
# run_short.sh FUZZER CORPUS: runs a libFuzzer target over its corpus (a directory, relative to this one), then
# LAZYBLOB_FUZZ_SECONDS (5) of new inputs. What it finds goes to a directory of its own; an input that fails is
# kept beside the fuzzer as NAME.crash-…, printed, and fails the run.
set -euo pipefail
fuzzer=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")"
corpus=$(realpath "$2")
if [[ -z $(find "$corpus" -type f -print -quit) ]]; then
  echo "run_short.sh: no inputs in $corpus" >&2
  exit 1
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
found=$scratch/found
mkdir "$found" "$scratch/files"
export LAZYBLOB_TEST_TMPDIR=$scratch/files  # of targets that need files
status=0
# The corpus is given last, as read-only input; new inputs go to the first directory.
"$fuzzer" -max_total_time="${LAZYBLOB_FUZZ_SECONDS:-5}" -timeout=10 -rss_limit_mb=1024 -max_len=65536 \
  -print_final_stats=1 -artifact_prefix="$fuzzer." "$found" "$corpus" || status=$?
if ((status != 0)); then
  echo "run_short.sh: $fuzzer failed on its corpus or a new input; see $fuzzer.*" >&2
fi
exit "$status"
