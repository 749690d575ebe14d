# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: not tests, but a program; see `__main__.py`."""
