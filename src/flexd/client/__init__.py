# SPDX-License-Identifier: Apache-2.0
"""The client library of the API, used by the command, by other daemons and by the Nova driver.

Synchronous and lean on purpose: nothing here imports more than sockets and JSON until it is needed.
"""
