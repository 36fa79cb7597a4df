# Reference trees: what umoci makes of an image. Made once, kept under $WORK/judge, never written to afterwards.
#
#   judge_tree REPO TAG    sets JUDGE to the unpacked root of $REG/REPO:TAG, and JUDGE_ALLOW to the list of
#                          directories whose time no layer settles (for --allow-file)
#   made_cases             prints "NAME TWIN FORMAT,… ALLOWANCE,…" for every good made image; TWIN is the image that
#                          umoci can judge it by, mostly itself
#
# All plain compressions of an image have the same tars, so the gzip one judges them all. umoci cannot read zstd:
# such an image is unpacked via its tars.

judge_tree() {
  local repo=$1 tag=$2 dir layout kept
  dir=$WORK/judge/${repo//\//_}-$tag
  JUDGE=$dir/rootfs JUDGE_ALLOW=$dir/implied
  [ -e "$dir/complete" ] && return
  rm -rf --one-file-system "$dir"
  mkdir -p "$dir"
  layout=$dir/layout
  timeout 120 skopeo copy -q --preserve-digests --src-tls-verify=false "docker://$REG/$repo:$tag" "oci:$layout:image"
  case $tag in
    zstd*|multizstd)
      "$PYTHON" "$E2E_DIR/lib/ocilayout.py" recompress "$layout:image" "$layout:plain" --to none
      kept=plain ;;
    *) kept=image ;;
  esac
  timeout 240 umoci raw unpack --image "$layout:$kept" "$JUDGE" > "$dir/log" 2>&1 ||
    die "umoci cannot unpack $repo:$tag: $(tail -1 "$dir/log")"
  "$PYTHON" "$E2E_DIR/lib/ocilayout.py" implied "$layout:$kept" > "$dir/implied"
  rm -rf "$layout"
  touch "$dir/complete"
}

made_cases() {
  "$PYTHON" - "$WORK/images/made/cases.json" "$WORK/images/made/convert.list" <<'LIST'
import json, sys
converted = set(open(sys.argv[2]).read().split())
for name, case in json.load(open(sys.argv[1]))["good"].items():
    formats = case["formats"] + (["estargz", "zstdchunked"] if name in converted else [])
    print(name, case["twin"] or name, ",".join(formats), ",".join(case["allow"]) or "-")
LIST
}
