# SPDX-License-Identifier: Apache-2.0
"""When snapshots are due, how long they live, what they are called; pure. Rules and words are LXD's."""

import re
from collections.abc import Container
from datetime import datetime, timedelta

from croniter import CroniterBadCronError, croniter
from jinja2 import TemplateError
from jinja2.sandbox import SandboxedEnvironment

from flexd.api.times import ZERO_TIME

_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@annually": "0 0 1 1 *",
    "@yearly": "0 0 1 1 *",
}
STARTUP, NEVER = "@startup", "@never"
_EXPIRY = re.compile(r"([0-9]+)(S|M|H|d|w|m|y)")
_SECONDS = {"S": 1, "M": 60, "H": 3600, "d": 86400, "w": 7 * 86400, "m": 30 * 86400, "y": 365 * 86400}
# No access to anything but its own variables: the pattern is the user's.
_patterns = SandboxedEnvironment()


def _expressions(schedule: str) -> list[str]:
    """A schedule is one cron expression, or aliases separated by commas."""
    if "@" not in schedule:
        return [schedule.strip()]
    return [_ALIASES.get(part.strip(), part.strip()) for part in schedule.split(",")]


def schedule_fault(value: str) -> str | None:
    for expression in _expressions(value):
        if expression in (STARTUP, NEVER):
            continue
        try:
            if len(expression.split()) != 5:
                raise CroniterBadCronError("five fields")
            croniter(expression)
        except (CroniterBadCronError, ValueError):
            return (
                f'invalid schedule "{value}" (a cron expression with five fields, or {", ".join(_ALIASES)}, @startup)'
            )
    return None


def is_due(schedule: str, minute: datetime) -> bool:
    """Whether a schedule names this minute."""
    expressions = [e for e in _expressions(schedule) if e not in (STARTUP, NEVER)] if schedule else []
    return any(croniter.match(expression, minute) for expression in expressions)


def at_startup(schedule: str) -> bool:
    """Whether a snapshot is due before each start."""
    return STARTUP in _expressions(schedule)


def expiry_fault(value: str) -> str | None:
    if all(_EXPIRY.fullmatch(part) for part in value.split()):
        return None
    return f'invalid expiry "{value}" (such as "1M 2H 3d 4w 5m 6y": minutes, hours, days, weeks, months, years)'


def expires_at(created_at: datetime, expiry: str) -> datetime:
    """When something made then ends; the zero time for an empty expiry: never."""
    seconds = sum(int(match[1]) * _SECONDS[match[2]] for match in _EXPIRY.finditer(expiry))
    return created_at + timedelta(seconds=seconds) if seconds else ZERO_TIME


def pattern_fault(value: str) -> str | None:
    try:
        _patterns.from_string(value)
    except TemplateError as error:
        return f'invalid pattern "{value}": {error}'
    return None


def make_name(pattern: str, created_at: datetime, taken: Container[str]) -> str:
    """The next free name: `snap%d` counts; a pattern such as `{{ creation_date }}` (LXD's pongo2) that gives a taken
    name gets a number behind it."""
    text = _patterns.from_string(pattern or "snap%d").render(creation_date=created_at.strftime("%Y-%m-%d_%H-%M-%S"))
    if "%d" not in text:
        if text not in taken:
            return text
        text += "-%d"
    number = 0
    while (name := text.replace("%d", str(number))) in taken:
        number += 1
    return name
