# SPDX-License-Identifier: Apache-2.0
"""How archives are compressed that go out: LXD's names of algorithms, as programs that filter."""

import re
import shutil

from msgspec import Struct

from flexd.api.errors import BadRequest

NONE = "none"
SQUASHFS = "squashfs"


class Compressor(Struct, frozen=True):
    """`argv` compresses stdin to stdout; empty for "none". `suffix` goes behind `.tar`."""

    name: str
    suffix: str
    argv: tuple[str, ...] = ()


# The same input gives the same file (gzip -n), and as many threads as there are processors where a program has them.
# gzip at 1, unless a level is asked for: three times as fast as at 6, for a file a tenth larger (240 MB of Debian).
_PROGRAMS = {
    "bzip2": Compressor("bzip2", ".bz2", ("bzip2", "-c")),
    "gzip": Compressor("gzip", ".gz", ("gzip", "-nc", "-1")),
    "lz4": Compressor("lz4", ".lz4", ("lz4", "-qc")),
    "lzma": Compressor("lzma", ".lzma", ("xz", "-c", "--format=lzma")),
    "pigz": Compressor("pigz", ".gz", ("pigz", "-nc", "-1")),
    "xz": Compressor("xz", ".xz", ("xz", "-c", "-T0")),
    "zstd": Compressor("zstd", ".zst", ("zstd", "-qc", "-T0")),
    NONE: Compressor(NONE, ""),
}
_LEVEL = re.compile(r"-[0-9]{1,2}e?")


def algorithm_fault(algorithm: str, *, squashfs: bool = False) -> str | None:
    """What is wrong with `zstd -9`; None if nothing is. `squashfs`: whether that is one too."""
    name, *options = algorithm.split() or [algorithm]
    if name == SQUASHFS and squashfs:
        return None if not options and shutil.which("mksquashfs") else "mksquashfs is missing, and it takes no options"
    if name not in _PROGRAMS:
        known = sorted({*_PROGRAMS, *([SQUASHFS] if squashfs else [])})
        return f"expected one of {', '.join(known)}"
    if len(options) > 1 or any(not _LEVEL.fullmatch(option) for option in options) or (options and name == NONE):
        return "only a level may follow (`zstd -9`)"
    program = _PROGRAMS[name].argv[:1]
    if program and shutil.which(program[0]) is None:
        return f"this host has no program {program[0]}"
    return None


def check_algorithm(algorithm: str, *, squashfs: bool = False) -> None:
    fault = algorithm_fault(algorithm, squashfs=squashfs)
    if fault is not None:
        raise BadRequest(f'Invalid compression algorithm "{algorithm}": {fault}')


def compressor(algorithm: str) -> Compressor:
    """Of an algorithm that has been checked. pigz in place of gzip where it is installed: it uses every processor."""
    name, *options = algorithm.split()
    if name == "gzip" and shutil.which("pigz"):
        name = "pigz"
    found = _PROGRAMS[name]
    return Compressor(found.name, found.suffix, (*found.argv, *options) if found.argv else ())
