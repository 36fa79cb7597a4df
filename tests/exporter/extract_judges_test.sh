#!/bin/bash
# extract_judges_test.sh EXTRACT_LAYOUT: what we unpack is what umoci unpacks, in every property of every
# inode: an image with layers that delete, replace and hide, and the Debian image of tests/e2e where it has been made
# (LAZYBLOB_WORK, else e2e in the build directory). Needs root.
set -euo pipefail
extract=$(realpath "$1")
here=$(cd "$(dirname "$0")" && pwd)
if [[ $(id -u) != 0 ]]; then
  echo "NOT TESTED: needs root" >&2
  exit 77
fi
for program in umoci python3 setfattr tar; do
  command -v "$program" >/dev/null || { echo "extract_judges_test: $program is missing (apt install)" >&2; exit 1; }
done
work=$(mktemp -d /var/tmp/lazyblob-extract.XXXXXX)
trap 'rm -rf --one-file-system "$work"' EXIT
cd "$work"

judge() {  # layout, tag, what may differ
  local layout=$1 tag=$2 way; shift 2
  umoci unpack --image "$layout:$tag" bundle > /dev/null
  for way in "" staged; do
    "$extract" "$layout" "$tag" ours $way
    python3 -B "$here/../e2e/tree_diff.py" "$@" bundle/rootfs ours
    rm -rf --one-file-system ours
  done
  rm -rf --one-file-system bundle
}

# A base, and a layer that umoci makes of changes of all kinds.
mkdir -p tree/{keep/deep,gone/below,opaque,type,moved}
echo one > tree/keep/file
echo two > tree/keep/deep/file
ln tree/keep/file tree/keep/hard
ln -s ../keep/file tree/type/link
echo x > tree/type/file; mkdir tree/type/dir; echo y > tree/type/dir/below
echo z > tree/gone/below/file; echo w > tree/opaque/old; echo v > tree/moved/file
mknod tree/keep/null c 1 3; mkfifo tree/keep/fifo
chmod 04755 tree/keep/file; chown 1000:2000 tree/keep/deep/file
setfattr -n user.note -v "a b" tree/keep/deep
touch -d '2001-02-03 04:05:06.789012345' tree/keep/deep/file tree/keep/deep tree/keep
umoci init --layout layout
umoci new --image layout:base
tar -C tree --xattrs --format=pax -cf base.tar .
umoci raw add-layer --image layout:base base.tar
umoci unpack --image layout:base change > /dev/null
root=change/rootfs
rm -r "$root/gone" "$root/opaque"; mkdir "$root/opaque"; echo new > "$root/opaque/new"
rm -r "$root/type"/*; mkdir "$root/type/link"; ln -s dir "$root/type/file"; echo plain > "$root/type/dir"
mv "$root/moved/file" "$root/moved/elsewhere"; echo more >> "$root/keep/hard"; rm "$root/keep/null"
umoci repack --image layout:changed change > /dev/null
mkdir -p more/keep more/opaque
touch more/opaque/.wh..wh..opq more/keep/.wh.deep
echo 3 > more/keep/added
tar -C more -cf more.tar keep/added keep/.wh.deep opaque/.wh..wh..opq
umoci raw add-layer --image layout:changed --tag more more.tar
judge layout base
judge layout changed
judge layout more

debian=${LAZYBLOB_WORK:-$(dirname "$(dirname "$extract")")/e2e}/images/debian
if [[ -f $debian/index.json ]]; then
  judge "$debian" gzip --allow clamped-mtime   # as containerd clamps
else
  echo "the Debian image is not made yet (tests/e2e/make_images.sh): the small image only"
fi
