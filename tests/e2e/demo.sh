#!/bin/bash
# The demo: a real Debian with python3 and numpy lies in a real registry in several formats; each is mounted with
# `lazyblob mount` and a Python program runs in it. Prints what that cost. Leaves nothing mounted.
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/registry.sh"
. "$E2E_DIR/lib/lazyblob.sh"
need_root
need_programs
need_tools docker-registry skopeo umoci ctr-remote mmdebstrap
"$E2E_DIR/make_images.sh" debian
make_scratch
registry_start demo "$WORK/images/registry"
before=$(our_mounts)
printf '\nPython 3 with numpy, started in an image that is not there yet (registry: Debian'\''s docker-registry, %s)\n\n' "$REG"
printf '%-24s %10s %16s %10s %12s  %-7s %s\n' format image fetched index "first output" mode "what it said"

run() {  # format, label, index first?
  local format=$1 label=$2 indexed=$3 dir=$SCRATCH/mnt size mark started elapsed index_ms=- fetched
  lb_root "$format"
  size=$(skopeo inspect --raw --tls-verify=false "docker://$REG/debian:$format" |
    "$PYTHON" -c 'import json,sys; print(sum(d["size"] for d in json.load(sys.stdin)["layers"]))')
  if [ "$indexed" = yes ]; then
    started=$(now_ms)
    lb --root "$ROOT_DIR" index --plain-http --progress none "$REG/debian:$format" > /dev/null || die "lazyblob index $format"
    index_ms="$(( $(now_ms) - started )) ms"
  fi
  drop_caches
  mark=$(registry_mark)
  started=$(now_ms)
  lb_mount auto "$REG/debian:$format" "$dir" || die "lazyblob mount $format"
  timeout 60 chroot "$dir" /usr/bin/python3 /app/hello.py > "$SCRATCH/said" || die "python3 does not run in debian:$format"
  elapsed=$(( $(now_ms) - started ))
  lb_umount "$dir" || die "lazyblob umount $format"
  sleep 0.2
  fetched=$("$PYTHON" "$E2E_DIR/lazy_count.py" --from "$mark" --json "$REG_LOG" |
    "$PYTHON" -c 'import json,sys; print(json.load(sys.stdin)["blob_bytes"])')
  printf '%-24s %7.1f MB %7.1f MB %4d %% %10s %9d ms  %-7s %s\n' "$label" "$(mb "$size")" "$(mb "$fetched")" \
    $((fetched * 100 / size)) "$index_ms" "$elapsed" "$(lb_json "$LB_OUT" 'image["mode"]')" "$(cut -c1-40 "$SCRATCH/said")"
}
mb() { awk -v b="$1" 'BEGIN {printf "%.1f", b / 1e6}'; }

run gzip "gzip, first time" no
rm -rf --one-file-system "$SCRATCH/root-gzip"
run gzip "gzip, after index" yes
run zstd "zstd" no
run estargz "eStargz" no
run zstdchunked "zstd:chunked" no
echo
[ "$(our_mounts)" = "$before" ] || die "something is left mounted"
