# SPDX-License-Identifier: Apache-2.0
"""Device kind `none`: takes a device that a profile gives away from an instance."""

from flexd.devices.contract import Kind


class NoneDevice(Kind, type="none"):
    """No keys, nothing to do."""

    SAVABLE = True
