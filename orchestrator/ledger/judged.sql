-- Version 5: scores of a judge. SQLite cannot change a CHECK, so the table is made again; what a kind means, report/evaluations.py knows.

CREATE TABLE evaluations_5 (
    run_id TEXT NOT NULL REFERENCES runs (id),
    step INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('slice', 'choices', 'sample', 'judge')),
    name TEXT NOT NULL,
    measured_at REAL NOT NULL,
    loss REAL,
    result TEXT NOT NULL,
    PRIMARY KEY (run_id, step, kind, name)
);

INSERT INTO evaluations_5 (run_id, step, kind, name, measured_at, loss, result)
SELECT run_id, step, kind, name, measured_at, loss, result FROM evaluations;

DROP TABLE evaluations;

ALTER TABLE evaluations_5 RENAME TO evaluations;
