# SPDX-License-Identifier: Apache-2.0
"""Lists look as lxc's do; the expected texts were printed by Debian's lxc 5.0.2."""

import json

from flexd.cli.table import natural_key, render

HEADER = ["name", "state", "ipv4"]
ROWS = [["c1", "RUNNING", "198.18.0.7 (eth0)\n198.18.1.7 (eth1)"], ["web", "STOPPED", ""]]


def test_table() -> None:
    assert render("table", HEADER, ROWS, None) == (
        "+------+---------+-------------------+\n"
        "| NAME |  STATE  |       IPV4        |\n"
        "+------+---------+-------------------+\n"
        "| c1   | RUNNING | 198.18.0.7 (eth0) |\n"
        "|      |         | 198.18.1.7 (eth1) |\n"
        "+------+---------+-------------------+\n"
        "| web  | STOPPED |                   |\n"
        "+------+---------+-------------------+\n"
    )


def test_an_empty_table_is_its_head() -> None:
    assert render("table", ["alias", "target"], [], None) == (
        "+-------+--------+\n| ALIAS | TARGET |\n+-------+--------+\n"
    )


def test_compact() -> None:
    assert render("compact", ["name", "state"], [["c1", "RUNNING"]], None) == ("  NAME   STATE   \n  c1    RUNNING  \n")


def test_csv_quotes_what_needs_it() -> None:
    assert render("csv", HEADER, ROWS, None) == ('c1,RUNNING,"198.18.0.7 (eth0)\n198.18.1.7 (eth1)"\nweb,STOPPED,\n')


def test_json_and_yaml_show_the_objects() -> None:
    raw = [{"name": "c1", "config": {"b": "1", "a": "ü"}}]
    assert json.loads(render("json", HEADER, ROWS, raw)) == raw
    assert render("json", HEADER, ROWS, raw).startswith('[{"name":"c1",')
    assert render("yaml", HEADER, ROWS, raw) == '- name: c1\n  config:\n    a: ü\n    b: "1"\n'


def test_wide_letters_take_two_columns() -> None:
    lines = render("table", ["name"], [["日本"], ["abcd"], ["é"], ["e\u0301"]], None).splitlines()
    assert lines[3] == "| 日本 |"
    assert lines[5] == "| abcd |"
    assert lines[7] == "| é    |"
    assert lines[9] == "| e\u0301    |"


def test_numbers_sort_by_value_and_nothing_last() -> None:
    rows = [["c10"], ["c2"], [""], ["b9"], ["c2a"]]
    assert sorted(rows, key=natural_key) == [["b9"], ["c2"], ["c2a"], ["c10"], [""]]
