# SPDX-License-Identifier: Apache-2.0
"""The guest API (LXD's devlxd): `/dev/lxd/sock` and `/dev/incus/sock` inside instances."""
