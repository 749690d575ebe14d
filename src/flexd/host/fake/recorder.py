# SPDX-License-Identifier: Apache-2.0
"""What was asked of a fake host, and what a test wants to fail."""

from msgspec import Struct


class Call(Struct, frozen=True):
    """`method` is "mounts.overlay"; `arguments` those that tell calls apart (the target)."""

    method: str
    arguments: tuple[object, ...]


class _Failure(Struct):
    method: str
    error: BaseException
    skip: int
    times: int | None


class Recorder:
    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.readings: list[Call] = []
        self._failures: list[_Failure] = []

    def fail(self, method: str, error: BaseException, *, after: int = 0, times: int | None = None) -> None:
        """Let a method raise: not in the next `after` calls, then `times` times (None: from then on). "*": whichever
        method changes something."""
        self._failures.append(_Failure(method, error, after, times))

    def heal(self) -> None:
        self._failures.clear()

    def note(self, method: str, *arguments: object) -> None:
        """Called first by every method that changes something."""
        self.calls.append(Call(method, arguments))
        self._raise_if_wanted(method, "*")

    def note_reading(self, method: str, *arguments: object) -> None:
        """Called first by every method that only looks."""
        self.readings.append(Call(method, arguments))
        self._raise_if_wanted(method)

    def _raise_if_wanted(self, *methods: str) -> None:
        for failure in self._failures:
            if failure.method not in methods:
                continue
            if failure.skip > 0:
                failure.skip -= 1
            elif failure.times is None or failure.times > 0:
                failure.times = None if failure.times is None else failure.times - 1
                raise failure.error
