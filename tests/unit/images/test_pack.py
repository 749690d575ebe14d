# SPDX-License-Identifier: Apache-2.0
"""Archives that become one: every member passes, what ends each does not."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from flexd.api.errors import BadRequest
from flexd.images.compress import algorithm_fault, find_compressor
from flexd.images.pack import Folder, Joiner, Text, _member
from tests.unit.images.archives import entry, rootfs_members, tar

END = bytes(1024)


def joined(*archives: bytes, step: int = 1 << 20) -> bytes:
    """As the packer does: one joiner an archive, then an end of our own."""
    found = bytearray()
    for archive in archives:
        joiner = Joiner()
        for start in range(0, len(archive), step):
            for piece in joiner.feed(memoryview(archive[start : start + step])):
                found += piece
        assert joiner.ended
    return bytes(found) + END


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getnames()


@pytest.mark.parametrize("step", [1, 7, 511, 512, 513, 10_240, 1 << 20])
def test_pieces_of_any_size(step: int):
    one, two = tar(rootfs_members("a/")), tar(rootfs_members("b/"))
    data = joined(one, two, step=step)
    assert names(data) == [name for data in (one, two) for name in names(data)]


def test_content_that_looks_like_an_end():
    zeros = tar([(entry("zeros"), bytes(5000)), (entry("more"), b"text"), (entry("last"), bytes(1024))])
    data = joined(zeros, tar([(entry("after"), b"x")]))
    assert names(data) == ["zeros", "more", "last", "after"]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        file = archive.extractfile("zeros")
        assert file is not None
        assert file.read() == bytes(5000)


@pytest.mark.parametrize("form", ["--format=posix", "--format=gnu"])
def test_what_gnu_tar_writes(tmp_path: Path, form: str):
    """Long names, sparse files, links, attributes: headers of headers."""
    deep = tmp_path / "tree" / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"text")
    with (deep / "sparse").open("wb") as sparse:
        sparse.truncate(20 << 20)
        sparse.seek(8 << 20)
        sparse.write(b"island")
    os.link(deep / "file", deep / "linked")
    (deep / "symlink").symlink_to("x" * 200)
    argv = ["tar", "-C", str(tmp_path), "-cf", "-", form, "--sparse", "tree"]
    plain = subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout
    data = joined(plain, plain)
    assert names(data) == names(plain) * 2
    target = tmp_path / "target"
    target.mkdir()
    subprocess.run(["tar", "-C", str(target), "-xf", "-"], input=data, check=True)
    assert (target / deep.relative_to(tmp_path) / "sparse").read_bytes() == (deep / "sparse").read_bytes()


def test_an_extended_header_may_tell_the_size():
    """As GNU tar writes files of more than 8 GiB, whose size the plain header cannot hold."""
    info = tarfile.TarInfo("big")
    info.size = 600
    header = info.tobuf(tarfile.PAX_FORMAT)
    record = b"16 size=600\n".replace(b"16", b"12")
    extended = tarfile.TarInfo("PaxHeaders/big")
    extended.type, extended.size = tarfile.XHDTYPE, len(record)
    wrong = bytearray(header)
    wrong[124:136] = b"00000000000\0"
    data = extended.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + bytes(wrong) + bytes(1024) + END
    joiner = Joiner()
    found = b"".join(bytes(piece) for piece in joiner.feed(memoryview(data)))
    assert found == data[: -len(END)]
    assert joiner.ended


def test_an_archive_that_stops_early_has_not_ended():
    joiner = Joiner()
    joiner.feed(memoryview(tar(rootfs_members())[:1000]))
    assert not joiner.ended


def test_members_of_our_own():
    data = _member(Folder("templates")) + _member(Text("templates/a", b"x" * 513, 0o600, 5)) + END
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        folder, text = archive.getmembers()
        assert (folder.isdir(), folder.mode, text.mode, text.mtime, text.size) == (True, 0o755, 0o600, 5, 513)


# --- algorithms ---


@pytest.mark.parametrize("algorithm", ["none", "gzip", "gzip -9", "bzip2", "xz -0", "xz -9e", "zstd -19", "lzma"])
def test_known_algorithms(algorithm: str):
    assert algorithm_fault(algorithm) is None
    assert bool(find_compressor(algorithm).argv) == (algorithm != "none")


@pytest.mark.parametrize(
    "algorithm",
    ["", "foo", "gzip --rsyncable", "gzip -9 -9", "gzip;rm", "none -1", "gzip -o/etc/passwd", "/bin/gzip", "squashfs"],
)
def test_bad_algorithms(algorithm: str):
    with pytest.raises(BadRequest, match="Invalid compression algorithm"):
        find_compressor(algorithm)


def test_a_level_wins_over_ours():
    assert find_compressor("gzip -9").argv[-1] == "-9"
