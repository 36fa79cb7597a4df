#!/bin/bash
# The judges judge each other: umoci and Debian's containerd unpack the same images, and what they disagree about is
# the list of documented differences. Needs nothing of lazyblob.
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/registry.sh"
. "$E2E_DIR/lib/containerd.sh"
. "$E2E_DIR/lib/judge.sh"
need_root
make_scratch
registry_start judges "$WORK/images/registry"
containerd_start judges overlayfs
# containerd's overlay path: children of the lower directory show through beside a whiteout of the same name; it
# clamps times; a hard link or a duplicate may not come before … see made_tars.py for the twins.
failed=0
compare() {  # repository, its judge, allowances
  local repo=$1 twin=$2 dir=$SCRATCH/view-${1//\//_} allow=() a
  judge_tree "$twin" gzip
  for a in ${3//,/ }; do [ "$a" = - ] || allow+=(--allow "$a"); done
  if ! containerd_unpack "$REG/$repo:gzip" "$dir" 2> "$SCRATCH/err"; then
    log "$repo: containerd cannot unpack it: $(tail -1 "$SCRATCH/err")"
    [ "$repo" != "$twin" ] || failed=1
    return 0
  fi
  if "$PYTHON" "$E2E_DIR/tree_diff.py" "${allow[@]}" --allow-file "$JUDGE_ALLOW" "$JUDGE" "$dir" > "$SCRATCH/diff" 2>&1
  then log "$repo: agree"
  else
    log "$repo: differ: $(grep -vc '^tree_diff' "$SCRATCH/diff") lines"
    head -12 "$SCRATCH/diff" >&2
    [ "$repo" != "$twin" ] || failed=1   # where the judges disagree by nature, the twin is the judge
  fi
  umount "$dir"
}
compare debian debian clamped-mtime
while read -r name twin _ allow <&3; do compare "made/$name" "made/$twin" "$allow"; done 3< <(made_cases)
exit $failed
