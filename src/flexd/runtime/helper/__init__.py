# SPDX-License-Identifier: Apache-2.0
"""Code that runs in the helper process, never in the daemon: entering namespaces, liblxc's attach and console.

It is forked from a process that imported little, so it imports nothing of flexd but this package.
"""
