# SPDX-License-Identifier: Apache-2.0
"""Rules of the house that no linter knows: headers, sizes, links of the documentation."""

import ast
import re
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PYTHON = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
# A function that fits a screen or two, a module that can be read at a sitting.
MAX_FUNCTION_LINES = 60
MAX_MODULE_LINES = 600


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and length in lines of each function, without its decorators."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", (node.end_lineno or 0) - node.lineno + 1


def test_every_file_names_its_licence() -> None:
    scripts = [ROOT / "run", ROOT / ".ci/run", *(ROOT / "packaging").iterdir(), *(ROOT / "src").rglob("*.sql")]
    unnamed = [
        path for path in [*PYTHON, *scripts] if head(path) and "SPDX-License-Identifier: Apache-2.0" not in head(path)
    ]
    assert unnamed == []


def head(path: Path) -> str:
    return path.read_text()[:200]


def test_every_module_says_what_it_is() -> None:
    silent = [
        path for path in SOURCES if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_functions_fit_a_screen() -> None:
    sizes = [entry for path in SOURCES for entry in functions(path)]
    assert [name for name, lines in sizes if lines > MAX_FUNCTION_LINES] == []
    lengths = sorted(lines for _, lines in sizes)
    assert statistics.median(lengths) <= 8
    assert lengths[len(lengths) * 9 // 10] <= 30


def test_modules_can_be_read_at_a_sitting() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_MODULE_LINES} == {}


def test_no_path_of_a_developers_machine() -> None:
    # Built from parts, or this file would find itself.
    foreign = re.compile("/" + "work/(main|shared|scratch)|/" + "home/[a-z]+/")
    assert [path for path in [*PYTHON, *DOCUMENTS, ROOT / "run"] if foreign.search(path.read_text())] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_run_explains_itself() -> None:
    shown = subprocess.run([ROOT / "run"], capture_output=True, text=True, check=True).stdout
    assert all(f"\n  {verb}" in shown for verb in ("up", "down", "down --purge", "test", "check", "bench"))


def test_run_refuses_what_it_does_not_know() -> None:
    done = subprocess.run([ROOT / "run", "fly"], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'unknown verb "fly"' in done.stderr
