-- Version 3 of the ledger: sweeps. Their runs name them in options.queue.group.

CREATE TABLE sweeps (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    host TEXT NOT NULL,
    created_at REAL NOT NULL,
    data TEXT NOT NULL
);
