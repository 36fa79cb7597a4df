#!/bin/bash
# configure_and_build.sh PRESET JOBS
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
cmake --preset "$1"
cmake --build --preset "$1" -j "$2"
