#!/bin/bash
# tsan_deps.sh JOBS: Abseil and GoogleTest, as Debian ships their sources, built with ThreadSanitizer into
# build-tsan-deps/prefix. absl::Mutex tells TSan what it does only when it is compiled with it: Debian's library
# would need suppressions that hide real races. Does nothing when the prefix is up to date.
set -euo pipefail
jobs=$1
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
top=$PWD/build-tsan-deps
prefix=$top/prefix
flags="-O1 -g1 -fsanitize=thread -fno-omit-frame-pointer"

version=$(dpkg-query -W -f '${source:Version}' libabsl-dev)
gtest_version=$(dpkg-query -W -f '${source:Version}' googletest)
stamp="abseil $version, googletest $gtest_version, $(clang++-19 --version | head -n 1), $flags"
if [[ -f $prefix/stamp && $(<"$prefix/stamp") == "$stamp" ]]; then
  echo "up to date: $stamp"
  exit 0
fi
rm -rf "$top"
mkdir -p "$top/apt/lists/partial" "$top/apt/archives/partial"

# Source packages from the archives the system uses already, with lists of our own: its settings stay as they are.
apt-get indextargets --format 'deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(REPO_URI) $(RELEASE) main' \
  'Created-By: Packages' 'Origin: Debian' | sort -u >"$top/apt/sources.list"
if [[ ! -s $top/apt/sources.list ]]; then
  echo "tsan_deps.sh: apt knows no Debian archive (run apt-get update)" >&2
  exit 1
fi
apt_get=(apt-get -q -o Dir::Etc::sourcelist="$top/apt/sources.list" -o Dir::Etc::sourceparts=-
  -o Dir::State::lists="$top/apt/lists" -o Dir::Cache="$top/apt" -o Acquire::Retries=3 -o APT::Sandbox::User=root)
"${apt_get[@]}" update </dev/null
(cd "$top" && "${apt_get[@]}" source "abseil=$version" </dev/null)
abseil=$(find "$top" -mindepth 1 -maxdepth 1 -type d -name 'abseil-*')

build() {  # NAME SOURCE CMAKE-OPTION...
  local name=$1 source=$2
  shift 2
  cmake -G Ninja -S "$source" -B "$top/$name" -DCMAKE_BUILD_TYPE=None \
    -DCMAKE_C_COMPILER=clang-19 -DCMAKE_CXX_COMPILER=clang++-19 \
    -DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache \
    -DCMAKE_CXX_STANDARD=20 -DCMAKE_CXX_FLAGS="$flags" -DCMAKE_POSITION_INDEPENDENT_CODE=ON \
    -DCMAKE_INSTALL_PREFIX="$prefix" -DCMAKE_INSTALL_LIBDIR=lib -DBUILD_SHARED_LIBS=OFF "$@"
  cmake --build "$top/$name" -j "$jobs"
  cmake --install "$top/$name" >/dev/null
}
build absl-build "$abseil" -DABSL_BUILD_TESTING=OFF -DABSL_PROPAGATE_CXX_STD=ON
build gtest-build /usr/src/googletest -DBUILD_GMOCK=ON

rm -rf "$top/apt" "$top/absl-build" "$top/gtest-build" "$abseil" "$top"/abseil_*
echo "$stamp" >"$prefix/stamp"
