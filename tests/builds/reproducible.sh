#!/bin/bash
# reproducible.sh TARGET...: builds the targets (lazyblob-keeper: 5 minutes; lazyblobd: half an hour) twice, from copies of
# the sources in directories of different names, one after the other, without ccache, and compares every object, library
# and program bit by bit.
set -euo pipefail
(($# > 0)) || { echo "reproducible.sh: no target" >&2; exit 2; }
targets=("$@")
source=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
scratch=$(mktemp -d "${LAZYBLOB_TEST_TMPDIR:-/var/tmp}/reproducible.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

build() { # DIRECTORY
  mkdir -p "$1"
  tar -C "$source" --exclude './build*' --exclude ./.git -cf - . | tar -C "$1" -xf -
  cmake -S "$1" -B "$1/out" -G Ninja -DBUILD_TESTING=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O2 -g1 -DNDEBUG" > "$scratch/log" 2>&1 &&
    ninja -C "$1/out" -j "${JOBS:-$(nproc)}" "${targets[@]}" > "$scratch/log" 2>&1 || { tail -20 "$scratch/log" >&2; exit 1; }
}
build "$scratch/one"
build "$scratch/another/place"

cd "$scratch/one/out"
mapfile -d '' made < <(find . -type f \( -name '*.o' -o -name '*.a' -o -name lazyblob -o -name 'lazyblobd' -o -name 'lazyblob-keeper' \) -print0 | sort -z)
((${#made[@]} >= ${#targets[@]})) || { echo "reproducible.sh: ${targets[*]}: ${#made[@]} files made" >&2; exit 1; }
differ=0
for file in "${made[@]}"; do
  cmp "$file" "$scratch/another/place/out/$file" || differ=$((differ + 1))
done
echo "${targets[*]}: ${#made[@]} files, $differ differ"
((differ == 0))
