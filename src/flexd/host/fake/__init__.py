# SPDX-License-Identifier: Apache-2.0
"""A host in memory, for tests: the whole daemon runs on it without root."""

from flexd.host.fake.host import FakeHost

__all__ = ["FakeHost"]
