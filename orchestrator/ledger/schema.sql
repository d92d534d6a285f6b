-- Version 1 of the ledger. Columns are the fields of the records in records.py; TEXT columns of dict fields hold JSON.
-- A later version is a further file in database.MIGRATIONS; this one is never edited after a release.

CREATE TABLE rentals (
    id TEXT PRIMARY KEY,
    provider TEXT NOT NULL,
    host TEXT NOT NULL,
    machine TEXT NOT NULL,
    created_at REAL NOT NULL,
    instance_id TEXT,
    price_per_hour_usd REAL NOT NULL CHECK (price_per_hour_usd >= 0),
    state TEXT NOT NULL CHECK (state IN ('open', 'released')),
    released_at REAL,
    folder TEXT NOT NULL,
    ends_at REAL,
    address TEXT NOT NULL,
    data TEXT NOT NULL
);

CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    recipe TEXT NOT NULL,
    host TEXT NOT NULL,
    machine TEXT NOT NULL,
    created_at REAL NOT NULL,
    name TEXT,
    labels TEXT NOT NULL,
    note TEXT,
    recipe_digest TEXT NOT NULL,
    recipe_data TEXT NOT NULL,
    host_data TEXT NOT NULL,
    rental_id TEXT REFERENCES rentals (id),
    plan TEXT NOT NULL,
    options TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('planned', 'acquiring', 'preparing', 'training', 'ending', 'ended')),
    outcome TEXT,
    cause_code INTEGER,
    cause TEXT NOT NULL,
    started_at REAL,
    ended_at REAL,
    stage TEXT,
    step INTEGER NOT NULL,
    total_steps INTEGER NOT NULL,
    loss REAL,
    val_loss REAL,
    tokens_per_second REAL,
    mfu REAL,
    eta_s REAL,
    seen TEXT,
    seen_at REAL,
    seen_via TEXT,
    safe_step INTEGER,
    keep INTEGER NOT NULL,
    -- An ending run always says how it ended, and only an ending one does.
    CHECK ((outcome IS NOT NULL) = (state IN ('ending', 'ended')))
);

CREATE INDEX runs_by_age ON runs (created_at DESC);

CREATE INDEX runs_by_rental ON runs (rental_id);

CREATE TABLE attempts (
    run_id TEXT NOT NULL REFERENCES runs (id),
    number INTEGER NOT NULL,
    rental_id TEXT NOT NULL REFERENCES rentals (id),
    started_at REAL NOT NULL,
    ended_at REAL,
    from_step INTEGER NOT NULL,
    last_step INTEGER NOT NULL,
    PRIMARY KEY (run_id, number)
);

CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL REFERENCES runs (id),
    kind TEXT NOT NULL,
    time REAL NOT NULL,
    stage TEXT,
    text TEXT NOT NULL,
    data TEXT NOT NULL
);

CREATE INDEX events_by_run ON events (run_id, id);

CREATE TABLE stage_intervals (
    id INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL REFERENCES runs (id),
    rental_id TEXT REFERENCES rentals (id),
    stage TEXT NOT NULL,
    started_at REAL NOT NULL,
    ended_at REAL,
    last_at REAL NOT NULL,
    price_per_hour_usd REAL NOT NULL
);

CREATE INDEX stage_intervals_by_run ON stage_intervals (run_id, started_at);

CREATE TABLE intents (
    id TEXT PRIMARY KEY,
    rental_id TEXT NOT NULL REFERENCES rentals (id),
    created_at REAL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'bought', 'refused', 'unseen', 'adopted', 'closed')),
    closed_at REAL,
    request TEXT NOT NULL,
    answer TEXT NOT NULL
);

CREATE INDEX intents_by_rental ON intents (rental_id);

CREATE TABLE rates (
    run_id TEXT NOT NULL,
    machine TEXT NOT NULL,
    tokens_per_second REAL NOT NULL CHECK (tokens_per_second > 0),
    flop_per_token REAL NOT NULL,
    measured_at REAL NOT NULL,
    compiled INTEGER NOT NULL,
    precision TEXT NOT NULL,
    PRIMARY KEY (run_id, machine)
);
