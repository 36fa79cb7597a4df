#!/bin/bash
# The same tree as unpacking: every format × {erofs, loop, fuse} against what umoci makes of it (issue of the judges'
# own disagreements: judges.sh). Read in random order by read, mmap and 1-byte preads.
#   e2e_tree.sh debian | made      which images
#   LAZYBLOB_ONLY=NAME:FORMAT:MODE (globs) runs a part
#
# Documented differences, beside directories without an entry of their own (their time is nobody's):
#   TOC formats       times are whole seconds there; the landmark files of eStargz are not shown
#   trusted.*         dropped
#   times             outside 1970…2262 may be 0, as containerd clamps them
#   link counts       overlayfs counts names that an upper layer hides
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/registry.sh"
. "$E2E_DIR/lib/judge.sh"
. "$E2E_DIR/lib/lazyblob.sh"
need_root
need_programs
make_scratch
registry_start "tree-$1" "$WORK/images/registry"
failures=0 runs=0
before=$(our_mounts)

check() {  # repository, format, mode, twin, allowances
  local repo=$1 format=$2 mode=$3 twin=$4 dir=$SCRATCH/mnt allow=(--allow dropped-trusted-xattrs --allow clamped-mtime) a
  [[ "$repo:$format:$mode" == ${LAZYBLOB_ONLY:-*} ]] || return 0
  judge_tree "$twin" gzip
  for a in ${5//,/ }; do [ "$a" = - ] || allow+=(--allow "$a"); done
  case $format in
    estargz | zstdchunked) allow+=(--allow toc-files --allow toc-seconds) ;;
  esac
  runs=$((runs + 1))
  if ! lb_mount "$mode" "$REG/$repo:$format" "$dir"; then
    log "$repo:$format in mode $mode: cannot be mounted"
    failures=$((failures + 1))
    unmount_below "$dir"
    return 0
  fi
  if ! "$PYTHON" "$E2E_DIR/tree_diff.py" --max-lines 20 "${allow[@]}" --allow-file "$JUDGE_ALLOW" "$JUDGE" "$dir" \
    > "$SCRATCH/diff" 2>&1; then
    log "$repo:$format in mode $mode is not what umoci unpacks:"
    cat "$SCRATCH/diff" >&2
    failures=$((failures + 1))
  fi
  [ "$(lb_json "$LB_OUT" 'image["mode"]')" = "$mode" ] || { log "asked for $mode, got another mode"; failures=$((failures + 1)); }
  lb_umount "$dir" || { log "$repo:$format in mode $mode: cannot be unmounted"; failures=$((failures + 1)); unmount_below "$dir"; }
}

mounts_are_as_before() { [ "$(our_mounts)" = "$before" ]; }

case $1 in
  debian)
    for mode in erofs loop fuse; do
      # a root per mode: each streams, or finds in the TOC, everything anew
      lb_root "$mode"
      for format in gzip tar zstd estargz zstdchunked; do check debian "$format" "$mode" debian -; done
    done ;;
  made)
    # Layers without data of their own in between: one root, so that one mount's layers meet another's
    lb_root made
    while read -r name twin formats allow <&3; do
      for format in ${formats//,/ }; do
        for mode in erofs loop fuse; do
          # 100,000 files: every format by the kernel's tree, one by ours
          [ "$name" = many ] && [ "$mode" != erofs ] && [ "$format" != gzip ] && continue
          # the kernel reads the same metadata image in both: one format shows that loop devices change nothing
          [ "$mode" = loop ] && [ "$format" != gzip ] && [ -z "${LAZYBLOB_ONLY:-}" ] && continue
          check "made/$name" "$format" "$mode" "made/$twin" "$allow"
        done
      done
    done 3< <(made_cases) ;;
  *) die "debian or made?" ;;
esac
[ "$runs" -gt 0 ] || die "nothing was compared"
wait_until 30 'mounts are left behind: $(our_mounts | head -5)' mounts_are_as_before   # the daemon ends after its last mount
log "$runs mounts compared, $failures failures"
[ "$failures" = 0 ]
