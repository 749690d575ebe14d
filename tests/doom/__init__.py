# SPDX-License-Identifier: Apache-2.0
"""Doom, moved between two hosts while somebody watches: `./run doom`."""
