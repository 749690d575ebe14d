-- SPDX-License-Identifier: Apache-2.0
CREATE TABLE kv (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    revision INTEGER NOT NULL,
    lease INTEGER NOT NULL
) WITHOUT ROWID;

CREATE INDEX kv_lease ON kv (lease) WHERE lease <> 0;

-- What a watch replays; a NULL value is a deletion, position the order inside one transaction.
CREATE TABLE log (
    revision INTEGER NOT NULL,
    position INTEGER NOT NULL,
    key TEXT NOT NULL,
    value BLOB,
    PRIMARY KEY (revision, position)
) WITHOUT ROWID;

-- The deadline is not stored: a restarted daemon gives every lease its full time again, as etcd does.
CREATE TABLE lease (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    ttl_s REAL NOT NULL
);

-- revision: of the last change. pruned: the last revision that is no longer in the log.
CREATE TABLE counter (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;

INSERT INTO counter VALUES ('revision', 0), ('pruned', 0);
