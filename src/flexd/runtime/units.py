# SPDX-License-Identifier: Apache-2.0
"""What systemd in containers fit for migration reads before its own units: drop-ins for whole types (systemd.unit(5)).

Credentials are kept on a ramfs, which has no image; triggers of memory pressure are not armed again by a restore, after
which their owners would spin. Older versions only warn of a key that they don't know."""

from pathlib import Path

_DROP_INS = {
    "service.d/zz-flexd.conf": "[Service]\nLoadCredential=\nLoadCredentialEncrypted=\nSetCredential=\n"
    "SetCredentialEncrypted=\nImportCredential=\nMemoryPressureWatch=off\n",
    "socket.d/zz-flexd.conf": "[Socket]\nMemoryPressureWatch=off\n",
}


def write_units(directory: Path) -> None:
    """Blocking. World-readable, as a container's root looks at them with ids of its own."""
    for name, text in _DROP_INS.items():
        path = directory / name
        if path.exists() and path.read_text() == text:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
        for place in (directory, path.parent):
            place.chmod(0o755)
