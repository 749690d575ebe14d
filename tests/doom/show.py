# SPDX-License-Identifier: Apache-2.0
"""The demonstration: two hosts, a container that plays Doom on one, somebody who watches, and moves back and forth."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct
from PIL import Image

from tests.doom.image import doom_image
from tests.system.asked import Asked
from tests.system.hosts import Host, Hosts, Person, hosts
from tests.system.images import split_body
from tests.system.machine import wait_until

NAME = "doom"
_ADDRESS_TIMEOUT_S = 60.0
# The title and the credits stand still for at most 11 s.
_PICTURE_TIMEOUT_S = 30.0
_PICTURE_INTERVAL_S = 0.3


class Shot(Struct, frozen=True):
    """A picture that was on the screen; `silence_s`: the watcher's longest wait since the picture before."""

    file: Path
    silence_s: float


class Move(Struct, frozen=True):
    """`took_s`: what the command took; `silence_s`: what the watcher saw of it."""

    source: str
    target: str
    took_s: float
    silence_s: float
    before: Shot
    after: Shot


class Screen:
    """The watcher, and every picture that it took: each is of something not seen before."""

    def __init__(self, person: Person, address: str, directory: Path) -> None:
        self._directory = directory
        self._viewer = Asked(person, directory / "viewer.log", "tests.doom.viewer", address)
        self._seen: set[bytes] = set()
        self._count = 0

    def shot(self) -> Shot:
        """What the screen shows, as soon as it shows something new."""
        deadline = time.monotonic() + _PICTURE_TIMEOUT_S
        silence = 0.0
        while True:
            shot = self._take()
            silence = max(silence, shot.silence_s)
            with Image.open(shot.file) as image:
                pixels = image.tobytes()
            if pixels not in self._seen and len(set(pixels)) > 1:  # a black screen is none
                self._seen.add(pixels)
                return Shot(shot.file, silence)
            if time.monotonic() > deadline:
                raise AssertionError(f"the screen has stood still for {_PICTURE_TIMEOUT_S} s: {shot.file}")
            time.sleep(_PICTURE_INTERVAL_S)

    def silence(self) -> float:
        """The longest wait since it was last asked for, or a picture taken."""
        return self._take().silence_s

    def _take(self) -> Shot:
        self._count += 1
        file = self._directory / f"{self._count:04}.png"
        return Shot(file, self._viewer.ask(str(file))["silence_s"])

    def close(self) -> None:
        self._viewer.close()


class Show:
    def __init__(self, segment: Hosts, directory: Path) -> None:
        self.segment = segment
        self.directory = directory
        self.place: Host = segment.all[0]
        segment.serve_dhcp()
        self.place.import_body(*split_body(*doom_image()), NAME)

    def launch(self) -> str:
        """Start the container; its address."""
        self.place.flexc("launch", NAME, NAME, "-c", "migration.stateful=true")
        address: str = wait_until(self._address, _ADDRESS_TIMEOUT_S)
        return address

    def _address(self) -> str | None:
        network = self.place.get(f"/1.0/instances/{NAME}/state")["network"] or {}
        found = [each["address"] for each in network.get("eth0", {}).get("addresses", ()) if each["family"] == "inet"]
        return found[0] if found else None

    @contextlib.contextmanager
    def watching(self, address: str) -> Iterator[Screen]:
        screen = Screen(self.segment.person, address, self.directory)
        try:
            yield screen
        finally:
            screen.close()

    def move(self, screen: Screen) -> Move:
        """To the other host, alive."""
        source = self.place
        (target,) = (host for host in self.segment.all if host is not source)
        before = screen.shot()
        screen.silence()
        began = time.monotonic()
        self.segment.person.flexc("move", f"{source.name}:{NAME}", f"{target.name}:", "--live")
        took = time.monotonic() - began
        self.place = target
        after = screen.shot()
        return Move(source.name, target.name, took, after.silence_s, before, after)


@contextlib.contextmanager
def show(directory: Path) -> Iterator[Show]:
    """Both hosts, with nothing of them left at the end; `directory` is for the pictures and stays."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o711)  # containers' users pass through it
    with hosts(directory / "hosts") as segment:
        yield Show(segment, directory)
