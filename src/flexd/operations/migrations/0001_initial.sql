-- SPDX-License-Identifier: Apache-2.0
-- Plans under way, and plans that could not be taken back. `position` is the step that is being done or undone.
CREATE TABLE plan (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    token TEXT NOT NULL UNIQUE,
    plan BLOB NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('doing', 'undoing', 'failed')),
    position INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT ''
);
