#!/usr/bin/env python3
"""Measurements to a Markdown table: table.py [--smoke] FILE

FILE holds lines `SERIES\\tVALUE` (repeated; the median counts), `row\\tTEXT\\tSERIES\\tBASE|-\\tLIMIT|-\\tUNIT` and
`note\\tTEXT`. With BASE the ratio of the medians is limited, else the median itself. Exit status 1 if a limit is passed
(not with --smoke) or a series is missing.
"""
import statistics
import sys


def shown(value, unit):
    return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"


def main():
    series, rows, notes = {}, [], []
    smoke = sys.argv[1] == "--smoke"
    with open(sys.argv[-1]) as f:
        for line in f:
            kind, *rest = line.rstrip("\n").split("\t")
            if kind == "row":
                rows.append(rest)
            elif kind == "note":
                notes.append(rest[0])
            else:
                series.setdefault(kind, []).append(float(rest[0]))
    for note in notes:
        print(f"- {note}")
    print("\n| measurement | lazyblob | compared with | ratio | limit | |\n|---|---|---|---|---|---|")
    failures = 0
    for text, name, base, limit, unit in rows:
        if name not in series or (base != "-" and base not in series):
            print(f"| {text} | not measured | | | {limit} | FAILED |")
            failures += 1
            continue
        value = statistics.median(series[name])
        other = statistics.median(series[base]) if base != "-" else None
        judged = value / other if other else value
        bad = limit != "-" and judged > float(limit)
        failures += bad and not smoke
        limited = "" if limit == "-" else f"{limit}×" if other else f"{limit} {unit}"
        print(f"| {text} | {shown(value, unit)} | {shown(other, unit) if other else ''} | "
              f"{f'{value / other:.2f}×' if other else ''} | {limited} | "
              f"{'' if limit == '-' else 'FAILED' if bad else 'ok'} |")
    print(f"\n{len(rows)} measurements, {failures} beyond their limit", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
