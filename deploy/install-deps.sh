#!/bin/bash
# Installs what a make target needs on Debian 12:  install-deps.sh [build|test|e2e|demo|bench|all]...
# Quick and silent when nothing is missing. Services that come with packages are not started.
set -euo pipefail

build=(
  # tools
  build-essential cmake ninja-build pkg-config ccache git ca-certificates python3
  # what the programs link
  libfuse3-dev libcurl4-openssl-dev libssl-dev libzstd-dev zlib1g-dev libisal-dev
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler
  libabsl-dev nlohmann-json3-dev libsqlite3-dev libseccomp-dev libre2-dev libtomlplusplus-dev libspdlog-dev libfmt-dev libcli11-dev
  libgtest-dev libgmock-dev libbenchmark-dev
  # what they call: fusermount3 for those who are not root, mount(8)
  fuse3 util-linux
)
clang=(clang-19 llvm-19 clang-tidy-19 clang-format-19 libclang-rt-19-dev lld-19 googletest dpkg-dev)
images=(
  # registries, and the programs that judge ours
  docker-registry skopeo umoci stargz-snapshotter containerd runc
  # images and their parts
  debootstrap mmdebstrap erofs-utils libarchive-tools attr zstd pigz xz-utils e2fsprogs libcap2-bin
  # what the scripts use
  curl jq openssl apache2-utils procps iproute2 iptables psmisc strace faketime xfsprogs
)

declare -A wanted=()
want() { for package in "$@"; do wanted[$package]=1; done; }
for purpose in "${@:-all}"; do
  case $purpose in
    build) want "${build[@]}" ;;
    test | all) want "${build[@]}" "${clang[@]}" "${images[@]}" ;;
    e2e | demo | bench) want "${build[@]}" "${images[@]}" ;;
    *) echo "install-deps.sh: unknown purpose '$purpose'; known: build test e2e demo bench all" >&2; exit 2 ;;
  esac
done

# Packages may be virtual or replaced: what another one provides is there too.
installed=$(dpkg-query -W -f='${db:Status-Status} ${Package} ${Provides}\n' | sed -n 's/^installed //p' |
  sed 's/([^)]*)//g; s/,/ /g' | tr ' ' '\n' | sort -u)
mapfile -t missing < <(comm -23 <(printf '%s\n' "${!wanted[@]}" | sort -u) <(printf '%s\n' "$installed"))
((${#missing[@]} > 0)) || exit 0

if ((EUID != 0)); then
  echo "install-deps.sh: not root, and these packages are missing: ${missing[*]}" >&2
  exit 1
fi

# invoke-rc.d asks this file; 101 means "do not start anything".
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi

echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt_get=(apt-get -q -y -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300)
"${apt_get[@]}" update </dev/null
"${apt_get[@]}" install --no-install-recommends "${missing[@]}" </dev/null
