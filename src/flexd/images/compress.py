# SPDX-License-Identifier: Apache-2.0
"""How archives are compressed that go out: LXD's names of algorithms, as programs that filter."""

import re
import shutil

from msgspec import Struct

from flexd.api.errors import BadRequest

NONE = "none"
SQUASHFS = "squashfs"


class Compressor(Struct, frozen=True):
    """`argv` compresses stdin to stdout; empty for "none", and for squashfs, which needs its input as files. `suffix`
    goes behind `.tar`."""

    name: str
    suffix: str
    argv: tuple[str, ...] = ()
    program: str = ""


# The same input gives the same file (gzip -n), and as many threads as there are processors where a program has them.
# gzip at 1, unless a level is asked for: three times as fast as at 6, for a file a tenth larger (240 MB of Debian).
_PROGRAMS = {
    "bzip2": Compressor("bzip2", ".bz2", ("bzip2", "-c"), "bzip2"),
    "gzip": Compressor("gzip", ".gz", ("gzip", "-nc", "-1"), "gzip"),
    "lz4": Compressor("lz4", ".lz4", ("lz4", "-qc"), "lz4"),
    "lzma": Compressor("lzma", ".lzma", ("xz", "-c", "--format=lzma"), "xz"),
    "pigz": Compressor("pigz", ".gz", ("pigz", "-nc", "-1"), "pigz"),
    "xz": Compressor("xz", ".xz", ("xz", "-c", "-T0"), "xz"),
    "zstd": Compressor("zstd", ".zst", ("zstd", "-qc", "-T0"), "zstd"),
    NONE: Compressor(NONE, ""),
    SQUASHFS: Compressor(SQUASHFS, "", (), "mksquashfs"),
}
_LEVEL = re.compile(r"-[0-9]{1,2}e?")


def algorithm_fault(algorithm: str, *, squashfs: bool = False) -> str | None:
    """What is wrong with `zstd -9`; None if nothing is. `squashfs`: whether that is one too."""
    name, *options = algorithm.split() or [algorithm]
    if name == SQUASHFS and squashfs:
        return "it takes no options" if options else None
    if name not in _PROGRAMS or name == SQUASHFS:
        known = sorted({*_PROGRAMS} - ({SQUASHFS} if not squashfs else set()))
        return f"expected one of {', '.join(known)}"
    if len(options) > 1 or any(not _LEVEL.fullmatch(option) for option in options) or (options and name == NONE):
        return "only a level may follow (`zstd -9`)"
    return None


def find_compressor(algorithm: str, *, squashfs: bool = False) -> Compressor:
    """The program of this host; pigz in place of gzip where it is installed: it uses every processor. Blocking: looks
    for programs."""
    fault = algorithm_fault(algorithm, squashfs=squashfs)
    if fault is not None:
        raise BadRequest(f'Invalid compression algorithm "{algorithm}": {fault}')
    name, *options = algorithm.split()
    if name == "gzip" and shutil.which("pigz"):
        name = "pigz"
    found = _PROGRAMS[name]
    if found.program and shutil.which(found.program) is None:
        raise BadRequest(f'Invalid compression algorithm "{algorithm}": this host has no program {found.program}')
    return Compressor(found.name, found.suffix, (*found.argv, *options) if found.argv else (), found.program)
