-- Version 2 of the ledger: what checkpoints scored.

CREATE TABLE evaluations (
    run_id TEXT NOT NULL REFERENCES runs (id),
    step INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('slice', 'choices', 'sample')),
    name TEXT NOT NULL,
    measured_at REAL NOT NULL,
    loss REAL,
    result TEXT NOT NULL,
    PRIMARY KEY (run_id, step, kind, name)
);
