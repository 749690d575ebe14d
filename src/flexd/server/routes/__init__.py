# SPDX-License-Identifier: Apache-2.0
"""One file per resource; `ENDPOINTS` of each is found by scanning this folder."""
