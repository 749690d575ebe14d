# SPDX-License-Identifier: Apache-2.0
"""`flexc`, the command. Imports only `flexd.client`, and of that and of the standard library only what a word needs."""
