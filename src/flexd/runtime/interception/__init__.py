# SPDX-License-Identifier: Apache-2.0
"""System calls of containers that the daemon decides about (seccomp user notification, seccomp_unotify(2))."""
