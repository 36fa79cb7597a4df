# A table of what was fetched, and a script's count of what failed.
#   fail TEXT                        counts it; the script goes on
#   row WHO WHAT FETCHED SIZE        a line of the table: bytes fetched of bytes there are
#   lazy_row WHO WHAT FETCHED SIZE   one that must not be over 30 %
#   table_print                      Markdown, sorted by WHO
#   run_parts PART…                  runs part_PART, one after the other
#   end_with_failures                ends the script if there were any
# Needs common.sh, snapshotter.sh and $SCRATCH.
failures=0
TABLE=$SCRATCH/table
: > "$TABLE"

fail() {
  log "FAILED: $*"
  failures=$((failures + 1))
}

row() {
  printf '| %s | %s | %s | %s | %s %% |\n' "$1" "$2" "$(megabytes "$4")" "$(megabytes "$3")" "$(percent "$3" "$4")" >> "$TABLE"
  log "$1, $2: $(megabytes "$3") of $(megabytes "$4") MB ($(percent "$3" "$4") %)"
}

lazy_row() {
  row "$@"
  [ "$3" -le $(($4 * 30 / 100)) ] || fail "$1, $2: $3 of $4 bytes fetched, more than 30 %"
}

table_print() {
  printf '| who | what | image MB | fetched MB | share |\n|---|---|---|---|---|\n'
  sort -s -t'|' -k2,2 "$TABLE"
}

run_parts() {
  local part started
  for part in "$@"; do
    started=$(now_ms)
    "part_$part"
    log "$part: $(( ($(now_ms) - started) / 1000 )) s"
  done
}

end_with_failures() {
  log "$failures failures"
  [ "$failures" = 0 ] || exit 1
}
