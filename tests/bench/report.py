# SPDX-License-Identifier: Apache-2.0
"""Samples by row and column, and their table: as text, as JSON, as Markdown."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """What a line means; `target`: what the design asks of flexd, in the row's unit."""

    key: str
    title: str
    unit: str = "ms"
    target: float | None = None


ROWS = (
    Row("create", "create from a cached image"),
    Row("start", "start of a new instance, until the API says so"),
    Row("pid1", "launch (create and start) until PID 1 runs", target=100),
    Row("launch", "launch until the API says so"),
    Row("booted", "launch until systemd is `running`", target=400),
    Row("ipv4", "launch until it has an IPv4 address"),
    Row("start_again", "start again, until the API says so"),
    Row("stop", "clean stop"),
    Row("kill", "stop -f", target=100),
    Row("delete", "delete, stopped"),
    Row("delete_force", "delete -f, running"),
    Row("exec", "exec of `true`: POST and wait", target=15),
    Row("exec_websocket", "exec of `true` with websockets"),
    Row("push", "push of 100 MiB"),
    Row("pull", "pull of 100 MiB"),
    Row("list1", "list of {list} running, recursion=1"),
    Row("list2", "list of {list} running, recursion=2", target=20),
    Row("list2_rate", "list of {list} running, recursion=2", "requests/s"),
    Row("cli_lxc", "`lxc list`, {list} running"),
    Row("cli_flexc", "`flexc list`, {list} running"),
    Row("scale1", "list of {scale}, {list} of them running, recursion=1"),
    Row("scale2", "list of {scale}, {list} of them running, recursion=2", target=150),
    Row("scale_lxc", "`lxc list`, {scale}, {list} of them running"),
    Row("scale_flexc", "`flexc list`, {scale}, {list} of them running", target=400),
    Row("parallel", "{many} launched at once, until all run", "s"),
    Row("evacuate", "evacuation of 20 tiny containers, 10 of them live, to another host", "s", target=60),
    Row("come_home", "the same 20 coming home, 10 of them live", "s", target=60),
    Row("idle_cpu", "CPU of daemon and monitors, {many} idle, 10 s", "ms"),
    Row("monitor", "memory (PSS) left beside each container", "MB", target=1.5),
    Row("pss_fresh", "memory (PSS) of the daemon, fresh", "MB", target=62),
    Row("pss_many", "memory (PSS) of the daemon, {many} Debian running", "MB", target=80),
    Row("pss_listed", "memory (PSS) of the daemon, after the lists", "MB", target=80),
    Row("plug_disk", "disk added to a running instance"),
    Row("unplug_disk", "disk removed from a running instance"),
    Row("plug_nic", "NIC added to a running instance"),
    Row("unplug_nic", "NIC removed from a running instance"),
    Row("push_large", "push of 1 GiB through /files", "s"),
    Row("pull_large", "pull of 1 GiB through /files", "s"),
    Row("sftp_put", "push of 1 GiB through sftp", "s"),
    Row("sftp_get", "pull of 1 GiB through sftp", "s"),
    Row("idle_listed", "CPU of the daemon in 30 s, {list} idle", "ms"),
    Row("pss_scale", "memory (PSS) of the daemon, after the lists of {scale}", "MB"),
)


@dataclass
class Report:
    """All that a run found out."""

    columns: list[str]
    facts: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    known: tuple[Row, ...] = ROWS
    # (column, compared with): by default each with the first.
    pairs: list[tuple[str, str]] | None = None
    # Tables with columns of their own, behind this one.
    more: list["Report"] = field(default_factory=list)

    def add(self, key: str, column: str, *values: float) -> None:
        self.samples.setdefault(key, {}).setdefault(column, []).extend(values)

    def rows(self) -> Iterator[tuple[Row, str]]:
        for row in self.known:
            if row.key in self.samples:
                yield row, row.title.format_map(self.facts)

    def write_json(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._builtins(), indent=1) + "\n")

    def _builtins(self) -> dict[str, Any]:
        rows = {
            row.key: {
                "title": title,
                "unit": row.unit,
                "target": row.target,
                "columns": {column: _summary(values) for column, values in self.samples[row.key].items()},
            }
            for row, title in self.rows()
        }
        more = [report._builtins() for report in self.more]
        return {"facts": self.facts, "notes": self.notes, "columns": self.columns, "rows": rows, "more": more}

    def cells(self) -> list[list[str]]:
        """Header and lines: title, a column each, ratios of the others to the first, the target."""
        first, *others = self.columns
        pairs = self.pairs
        if pairs is None:
            pairs = [(column, first) for column in others if column != "by hand"]
        lines = [["", *self.columns, *(f"{column} / {ours}" for column, ours in pairs), "target"]]
        for row, title in self.rows():
            found = self.samples[row.key]
            line = [f"{title}, {row.unit}"]
            line += [_cell(found.get(column)) for column in self.columns]
            line += [_ratio(found.get(column), found.get(ours)) for column, ours in pairs]
            line.append(f"{row.target:g}" if row.target is not None else "")
            lines.append(line)
        return lines

    def text(self) -> str:
        tables = [report._table() for report in (self, *self.more) if report.samples]
        return "\n\n".join([*tables, "\n".join(self.remarks())])

    def _table(self) -> str:
        lines = self.cells()
        widths = [max(len(line[number]) for line in lines) for number in range(len(lines[0]))]
        pad = [
            "  ".join(cell.ljust(width) if not number else cell.rjust(width) for number, (cell, width) in
                      enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]  # fmt: skip
        return "\n".join(pad)

    def markdown(self) -> str:
        tables = "\n\n".join(report._markdown_table() for report in (self, *self.more) if report.samples)
        remarks = "\n".join(f"* {remark}" for remark in self.remarks())
        return f"{_PREFACE}\n{tables}\n\n{remarks}\n"

    def _markdown_table(self) -> str:
        header, *lines = self.cells()
        rule = ["---"] + ["--:"] * (len(header) - 1)
        return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))

    def remarks(self) -> list[str]:
        facts = self.facts
        return [
            f"{facts['date']}, {facts['machine']}; load average before {facts['load_before']}, "
            f"after {facts['load_after']}.",
            f"Medians (least-greatest) of {facts['rounds']} rounds; in each round every peer has its turn, at the same "
            f"priority (nice {facts['nice']}).",
            *(f"{name}: {version}." for name, version in facts["versions"].items()),
            *self.notes,
        ]


_PREFACE = """# Benchmarks

Written by `sudo ./run bench --peers --markdown docs/benchmarks.md`. The peers run on the same machine in the same
rounds, so the ratios mean more than the numbers. "By hand" is the floor: the same kind of container made by
liblxc's own programs, with no daemon and no network.
"""


def _summary(values: list[float]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "samples": [round(value, 3) for value in values],
    }


def _cell(values: list[float] | None) -> str:
    if not values:
        return "-"
    middle = _number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({_number(min(values))}-{_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(values: list[float] | None, ours: list[float] | None) -> str:
    if not values or not ours or statistics.median(ours) == 0:
        return ""
    return f"{statistics.median(values) / statistics.median(ours):.1f}"
