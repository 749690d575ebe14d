# SPDX-License-Identifier: Apache-2.0
"""What was seen, as one HTML page that needs no other file."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from tests.doom.show import Move

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Doom, moved while it plays</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; margin: 1em 0; }}
td, th {{ border: 1px solid #999; padding: .2em .8em; text-align: right; }}
figure {{ display: inline-block; margin: .5em; }}
img {{ display: block; width: 320px; }}
</style></head><body>
<h1>Doom, moved while it plays</h1>
<p>{summary}</p>
<table><tr><th>move</th><th>from</th><th>to</th><th>silence, s</th><th>whole move, s</th></tr>
{rows}
</table>
{pictures}
<p>{machine}</p>
</body></html>
"""
_SUMMARY = (
    "A Debian container plays Doom's demos. Somebody watches it over one VNC connection, from another machine on the "
    "network, while it moves {count} times between two hosts, alive. The watcher's longest silence was {worst:.2f} s. "
    "No picture below was seen twice: the demo goes on."
)


def page(moves: Sequence[Move], machine: str) -> str:
    rows = [
        f"<tr><td>{number}</td><td>{html.escape(move.source)}</td><td>{html.escape(move.target)}</td>"
        f"<td>{move.silence_s:.2f}</td><td>{move.took_s:.2f}</td></tr>"
        for number, move in enumerate(moves, 1)
    ]
    pictures = [
        _picture(shot.file, f"{words} move {number}, on host {place}")
        for number, move in enumerate(moves, 1)
        for words, shot, place in (("before", move.before, move.source), ("after", move.after, move.target))
    ]
    worst = max(move.silence_s for move in moves)
    return _PAGE.format(
        summary=_SUMMARY.format(count=len(moves), worst=worst),
        rows="\n".join(rows),
        pictures="\n".join(pictures),
        machine=html.escape(machine),
    )


def _picture(file: Path, caption: str) -> str:
    packed = io.BytesIO()
    with Image.open(file) as image:
        image.save(packed, "JPEG", quality=85)
    data = base64.b64encode(packed.getvalue()).decode()
    words = html.escape(caption)
    return f'<figure><img alt="{words}" src="data:image/jpeg;base64,{data}"><figcaption>{words}</figcaption></figure>'
