# SPDX-License-Identifier: Apache-2.0
"""`./run bench`: flexd beside its peers in one run. As root; leaves nothing behind, also when it is interrupted."""

import argparse
import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.bench import observe, storage, two_hosts
from tests.bench.images import Image, build_debian, tiny_image, unpack
from tests.bench.inside import InsideMeasurements
from tests.bench.measure import Measurements, versions
from tests.bench.peers import (
    ByHand,
    RestPeer,
    Server,
    add_ext4,
    remove_flexd_cgroups,
    remove_lxd_cgroups,
    start_flexd,
    start_lxd,
)
from tests.bench.place import Place
from tests.bench.report import Report

GROUPS = ("life", "exec", "files", "list", "scale", "many", "two", "storage", "plug", "transfer")
_INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
_INOTIFY_NEEDED = 8192
_MARK = "FLEXD_BENCH_UNSHARED"


def main() -> None:
    arguments = _parse()
    if os.geteuid() != 0:
        sys.exit("Error: the benchmarks make containers: run them as root")
    if not os.environ.get(_MARK):
        # What is mounted by hand goes with this process, too.
        os.environ[_MARK] = "1"
        argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "tests.bench", *sys.argv[1:]]
        os.execvp("unshare", argv)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with ExitStack() as stack:
            report = _run(arguments, stack)
    except KeyboardInterrupt:
        sys.exit("Interrupted; everything was taken down")
    print(report.text())
    report.write_json(arguments.json)
    print(f"\nWritten: {arguments.json}")
    if arguments.markdown is not None:
        arguments.markdown.write_text(report.markdown())
        print(f"Written: {arguments.markdown}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of create, start, stop, delete (default: 7)")
    parser.add_argument("--quick", action="store_true", help="2 rounds, 20 instances listed, 5 launched at once")
    parser.add_argument("--only", action="append", choices=GROUPS, help="only these measurements; may be repeated")
    peers = parser.add_mutually_exclusive_group()
    peers.add_argument("--peers", action="store_true", help="install Debian's lxd if it is not there")
    peers.add_argument("--alone", action="store_true", help="only flexd")
    parser.add_argument(
        "--sizes", nargs="+", choices=("300", "3000"), default=["300", "3000"], metavar="MB", help="of --only storage"
    )
    parser.add_argument(
        "--image", nargs="+", type=Path, metavar="FILE", help="Debian image: unified, or metadata and root"
    )
    parser.add_argument("--state", type=Path, default=Path("/var/tmp"), help="where the servers keep their state")
    parser.add_argument("--json", type=Path, default=Path(".bench/latest.json"))
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = min(arguments.rounds, 2)
    return arguments


def _interrupt(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # the way down is not interrupted again
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def _run(arguments: argparse.Namespace, stack: ExitStack) -> Report:
    top = arguments.state / f"fxb-{os.getpid()}"
    top.mkdir(mode=0o711)
    stack.callback(shutil.rmtree, top, ignore_errors=True)
    stack.enter_context(_many_inotify_instances())
    peers, by_hand = _set_up(arguments, stack, top)
    columns = [peer.title for peer in peers] + [by_hand.title for by_hand in by_hand]
    report = Report(columns)
    report.facts |= {
        "date": time.strftime("%Y-%m-%d"),
        "machine": _machine(),
        "load_before": observe.load_average(),
        "nice": os.nice(0),
        "rounds": arguments.rounds,
        "list": 20 if arguments.quick else 100,
        "scale": 200 if arguments.quick else 1000,
        "many": 5 if arguments.quick else 20,
        "versions": versions([*peers, *by_hand]),
    }
    if len(peers) == 1 and not arguments.alone:
        report.notes.append("lxd was not run: it is not installed (--peers installs it).")
    measurements = Measurements(report, observe.ExecTimes(), exec_count=5 if arguments.quick else 10)
    _measure(arguments, measurements, report, peers, by_hand, top)
    report.facts["load_after"] = observe.load_average()
    return report


def _measure(
    arguments: argparse.Namespace,
    measurements: Measurements,
    report: Report,
    peers: list[RestPeer],
    by_hand: list[ByHand],
    top: Path,
) -> None:
    def wanted(group: str) -> bool:
        return not arguments.only or group in arguments.only

    daemons = {peer.server.name: peer for peer in peers}  # one column for each daemon: the last of its pools
    for peer in daemons.values():
        measurements.daemon_memory("pss_fresh", peer)
    if any(wanted(group) for group in ("life", "exec", "files")):
        for number in range(arguments.rounds):
            _say(f"round {number + 1} of {arguments.rounds}")
            everyone = [*peers, *by_hand]
            first = number % len(everyone)  # none always comes after the same one, whose clean-up may go on
            for peer in everyone[first:] + everyone[:first]:
                measurements.life(peer, number, wanted)
    if wanted("many"):
        for peer in peers:
            _say(f"{report.facts['many']} Debians on {peer.title}")
            measurements.many(peer, report.facts["many"])
    if wanted("two"):
        _say(f"an evacuation of {two_hosts.COUNT}")
        two_hosts.measure(report, peers[0].title, top / "two", 2)
    _measure_devices_and_storage(arguments, report, peers, wanted)
    if wanted("list") or wanted("scale"):
        _lists(arguments, measurements, report, list(daemons.values()))


def _measure_devices_and_storage(
    arguments: argparse.Namespace,
    report: Report,
    peers: list[RestPeer],
    wanted: Callable[[str], bool],
) -> None:
    if wanted("plug") or wanted("transfer"):
        inside = InsideMeasurements(report, peers[0].server.place.directory.parent / "inside")
        for peer in peers:
            if wanted("plug"):
                _say(f"devices of {peer.title}")
                inside.plug(peer, 3 if arguments.quick else 10)
            if wanted("transfer"):
                _say(f"1 GiB in and out of {peer.title}")
                inside.transfer(peer, 1 if arguments.quick else 3)
    if wanted("storage"):
        stored = storage.add_peers(peers)
        more = storage.new_report(stored, report.facts)
        report.more.append(more)
        rounds = {"300": 1, "3000": 1} if arguments.quick else {"300": 5, "3000": 2}
        storage.measure(more, stored, rounds, _say, arguments.sizes)


def _lists(arguments: argparse.Namespace, measurements: Measurements, report: Report, daemons: list[RestPeer]) -> None:
    if any("tiny" not in peer.server.images for peer in daemons):
        report.notes.append("Lists were not measured: there is no static busybox (package busybox-static).")
        return
    for peer in daemons:
        _say(f"{report.facts['list']} instances to list on {peer.title}")
        measurements.fill(peer, report.facts["list"])
        measurements.idle(peer)
    if not arguments.only or "list" in arguments.only:
        _list_rounds(arguments, measurements, daemons, "list", "cli")
        for peer in daemons:
            measurements.daemon_memory("pss_listed", peer)
    if not arguments.only or "scale" in arguments.only:
        for peer in daemons:
            _say(f"{report.facts['scale']} instances to list on {peer.title}")
            measurements.fill_empty(peer, report.facts["scale"] - report.facts["list"])
        _list_rounds(arguments, measurements, daemons, "scale", "scale")
        for peer in daemons:
            measurements.daemon_memory("pss_scale", peer)


def _list_rounds(
    arguments: argparse.Namespace, measurements: Measurements, daemons: list[RestPeer], key: str, command: str
) -> None:
    flexc = str(Path(sys.executable).parent / "flexc")
    for number in range(arguments.rounds):
        _say(f"{key}, round {number + 1} of {arguments.rounds}")
        for peer in daemons:
            measurements.lists(peer, 3, key)
            if shutil.which("lxc"):
                measurements.command(peer, f"{command}_lxc", ["lxc", "list"], 3)
        measurements.command(daemons[0], f"{command}_flexc", [flexc, "list"], 3)


# --- setting up and taking down ---


def _set_up(arguments: argparse.Namespace, stack: ExitStack, top: Path) -> tuple[list[RestPeer], list[ByHand]]:
    _say("starting flexd")
    place = Place(top / "flexd")
    stack.callback(remove_flexd_cgroups, place.directory)
    stack.callback(place.close)
    flexd = start_flexd(place)
    stack.callback(_clear, flexd)
    flexd.add_pool("overlay", "overlay")
    flexd.add_network("198.18.201.1/24")
    debian = Image("debian", tuple(arguments.image)) if arguments.image else _debian(top)
    tiny = tiny_image(top / "tiny.tar")
    servers = [flexd]
    peers = [RestPeer("flexd", flexd, "overlay")]
    if not arguments.alone and _have_lxd(install=arguments.peers):
        lxd = _set_up_lxd(stack, top)
        servers.append(lxd)
        peers += [RestPeer("lxd dir", lxd, "dir"), RestPeer("lxd btrfs", lxd, "btrfs")]
    for server in servers:
        for image in filter(None, (debian, tiny)):
            server.add_image(image)
    _say("warming up: each unpacks its image")
    for peer in peers:
        peer.create("fxb-warm")
        peer.start("fxb-warm")
        peer.stop("fxb-warm", force=True)
        peer.delete("fxb-warm")
    if arguments.alone:
        return peers, []
    by_hand = ByHand(top / "hand", unpack(debian, top / "image"))
    stack.callback(by_hand.close)
    return peers, [by_hand]


def _debian(top: Path) -> Image:
    """Built once, by a flexd that reaches Debian's mirrors, and kept for the next run."""
    target = Path(".bench/debian-12")
    if not target.exists():
        _say(f"building the image debian/12 (kept as {target})")
        place = Place(top / "build", online=True)
        try:
            build_debian(start_flexd(place).api, target)
        finally:
            place.close()
            remove_flexd_cgroups(place.directory)
    return Image("debian", (target / "metadata", target / "rootfs"))


def _set_up_lxd(stack: ExitStack, top: Path) -> Server:
    _say("starting lxd")
    place = Place(top / "lxd")
    stack.callback(remove_lxd_cgroups)
    stack.callback(place.close)
    lxd = start_lxd(place)  # taken down by force: by its own means, a hundred instances take minutes
    lxd.add_pool("dir", "dir", source=add_ext4(place))
    lxd.add_pool("btrfs", "btrfs", size="16GiB")
    lxd.add_network("198.18.202.1/24")
    return lxd


def _clear(server: Server) -> None:
    """By its own means first, then little is left for force to take down."""
    with contextlib.suppress(Exception):
        server.clear()


def _have_lxd(*, install: bool) -> bool:
    if shutil.which("lxd") is None and install:
        _say("installing lxd")
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", "lxd"], env=environment, check=True)
    return shutil.which("lxd") is not None


@contextlib.contextmanager
def _many_inotify_instances() -> Iterator[None]:
    """128, the usual limit, lets the twelfth Debian of lxd fail; flexd raises it itself."""
    before = _INOTIFY.read_text()
    if int(before) < _INOTIFY_NEEDED:
        _INOTIFY.write_text(str(_INOTIFY_NEEDED))
    try:
        yield
    finally:
        _INOTIFY.write_text(before)


def _machine() -> str:
    release = platform.freedesktop_os_release()
    return f"{os.cpu_count()} cores, kernel {'.'.join(platform.release().split('.')[:2])}, {release['PRETTY_NAME']}"


if __name__ == "__main__":
    main()
