#!/bin/bash
# containerd_judges_test.sh PROGRAM: containerd, which has the real protocol and the real filters, judges ours. It talks
# to the Snapshots service as a proxy plugin (every call that ctr can make), and evaluates the same filters over leases
# with the same labels. Needs root.
set -euo pipefail
judged=$(realpath "$1")
source "$(dirname "${BASH_SOURCE[0]}")/../../e2e/lib/common.sh"
source "$E2E_DIR/lib/containerd.sh"
need_root
need_tools containerd ctr awk
make_scratch

# --- the wire ---
mkfifo "$SCRATCH/hold"
"$judged" serve "$SCRATCH" < "$SCRATCH/hold" > "$SCRATCH/judged.log" 2>&1 &
served=$!
exec 9> "$SCRATCH/hold"
on_exit "exec 9>&-; end_process $served"
wait_until 30 "the snapshotter does not listen, see $SCRATCH/judged.log" test -S "$SCRATCH/run/s.sock"

CTR_PARENT=$SCRATCH
# No garbage collection but the one asked for below: it would take a view that nothing holds.
CTR_EXTRA="[plugins.\"io.containerd.gc.v1.scheduler\"]
  startup_delay = \"1h\"
[proxy_plugins.judged]
  type = \"snapshot\"
  address = \"$SCRATCH/run/s.sock\""
containerd_start containerd
snap() { ctr_ snapshots --snapshotter judged "$@"; }
want() {  # WHAT EXPECTED ACTUAL
  [ "$2" = "$3" ] || die "$1: wanted '$2', got '$3'"
}
refused() {  # WORDS COMMAND…
  local words=$1 output
  shift
  if output=$("$@" 2>&1); then die "$* succeeded"; fi
  [[ $output == *"$words"* ]] || die "$*: wanted '$words' in: $output"
}

snap prepare --target "$SCRATCH/a" active-1 > "$SCRATCH/mounts"
grep -q "^mount -t bind $SCRATCH/root/s/[0-9]*/fs " "$SCRATCH/mounts" || die "mounts of a first snapshot: $(cat "$SCRATCH/mounts")"
snap prepare base-active > /dev/null
snap commit base base-active
snap prepare child base > /dev/null
snap view look base > /dev/null
snap mounts "$SCRATCH/a" child | grep -q "lowerdir=$SCRATCH/root/s/" || die "a child is no overlay"
want "kinds" "active-1 Active,base Committed,child Active,look View" \
  "$(snap ls | awk 'NR > 1 {print $1, $NF}' | sort | paste -sd,)"
want "parents" "base,base" "$(snap ls | awk '$1 == "child" || $1 == "look" {print $2}' | paste -sd,)"
snap label child containerd.io/snapshot/x=1 my.label=2 > /dev/null
snap info child | grep -q '"containerd.io/snapshot/x": "1"' || die "a label is lost: $(snap info child)"
snap label child containerd.io/snapshot/x= > /dev/null
if snap info child | grep -q '"containerd.io/snapshot/x"'; then die "an empty value does not delete"; fi
snap info child | grep -Eq '"Created": "20[0-9]{2}-[0-9-]+T[0-9:]+\.[0-9]+Z"' || die "no time: $(snap info child)"
snap usage child | awk 'NR == 2 && $1 == "child" && $NF > 0 {found = 1} END {exit !found}' || die "usage: $(snap usage child)"
refused "already exists" snap prepare child base
refused "not found" snap prepare other missing
refused "not found" snap info missing
refused "cannot remove" snap rm base
snap rm look
snap rm child
snap rm base
snap rm active-1
want "what is left" "" "$(snap ls | awk 'NR > 1')"

# Garbage collection walks all, removes what nothing holds, and calls Cleanup. ctr holds what it prepares, not views.
snap prepare held > /dev/null
snap view unheld > /dev/null
ctr_ leases create --id last > /dev/null
ctr_ leases rm --sync last > /dev/null
want "what garbage collection leaves" "held" "$(snap ls | awk 'NR > 1 {print $1}')"
want "directories" "1" "$(find "$SCRATCH/root/s" -mindepth 1 -maxdepth 1 | wc -l)"
grep -qE 'level=(error|fatal)' "$SCRATCH/containerd/log" && die "containerd complains: $(grep -E 'level=(error|fatal)' "$SCRATCH/containerd/log")"

# --- filters ---
ctr_ leases create --id bare > /dev/null
ctr_ leases create --id foo foo=true n=12 > /dev/null
ctr_ leases create --id dotted a.b.c=omg_asdf.asdf-qwer > /dev/null
ctr_ leases create --id slash containerd.io/x=sha256:ab foo=x=y > /dev/null
ctr_ leases create --id spaced "a b=x y" > /dev/null
cat > "$SCRATCH/filters" <<'FILTERS'
name
name==foo
name!=foo
name==foo,labels.foo
labels.foo
labels.foo==true
labels.foo!=true
labels.none!=""
labels.none~=^$
labels.a.b.c
labels."a.b".c==omg_asdf.asdf-qwer
labels."a.b.c"~=asdf
labels."containerd.io/x"==sha256:ab
labels."containerd.io/x"==sha256:ab,name~=/^(slash|foo)$/
labels."a b"=="x y"
labels."a b"==x y
labels.foo==x=y
labels.foo~=|x=.|
labels.n~=[0-9]{2}
labels.n~=/[0-9]{1,2}/
name~="^[a-f]+$"
 name == foo
name==foo 
name ,labels.foo
name, labels.foo
labels . foo
"name"==foo
labels."\x66\157\U0000006f"=="\x74r\u0075e"
nosuchfield
nosuchfield!=x
nosuchfield==
name=foo
name===foo
name==
name==,
,
name,
name..x
labels.
labels.containerd.io/x
labels.containerd.io/x==y
labels.|foo|==true
labels./foo/
name==/foo/
name==|foo|
name==/foo
name~=/foo
name~="foo
name~=/f\/o/
labels."\g"
labels."\xaz"
labels."\777"
name==.foo
name==f.oo
name==~foo
name==牛
name~=牛|foo
FILTERS
"$judged" match < "$SCRATCH/filters" > "$SCRATCH/ours"
while IFS= read -r filter; do
  if found=$(ctr_ leases ls -q "${filter//name/id}" 2>&1); then
    # The corpus' order.
    line=
    for id in bare foo dotted slash spaced; do
      if grep -qx "$id" <<< "$found"; then line+=" $id"; fi
    done
    echo "${line# }"
  else
    echo "error: $found"
  fi
done < "$SCRATCH/filters" > "$SCRATCH/theirs"
checked=0
while IFS=$'\t' read -r filter ours theirs; do
  # Of errors, that there is one counts; the words are ours.
  case $ours in error:*) ours=error ;; esac
  case $theirs in error:*) theirs=error ;; esac
  want "filter [$filter]" "$theirs" "$ours"
  checked=$((checked + 1))
done < <(paste "$SCRATCH/filters" "$SCRATCH/ours" "$SCRATCH/theirs")
want "filters judged" "$(wc -l < "$SCRATCH/filters")" "$checked"
log "containerd agrees on $checked filters and on every call of ctr snapshots"
