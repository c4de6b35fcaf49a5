-- items.db: one row an asset. Times are UTC, as text: 2026-11-23T16:47:00.123Z

CREATE TABLE items (
    object_id       TEXT NOT NULL PRIMARY KEY,  -- the asset's UUID, lower case
    title           TEXT,
    status          TEXT NOT NULL CHECK (status IN (
        'pending',     -- created; no closed proxy yet
        'early',       -- a closed proxy came, the create did not yet
        'ready',       -- both came; an analyze job is due at next_attempt_at
        'submitting',  -- a request to iconik is under way
        'submitted',   -- iconik took the job
        'failed'       -- iconik refused it for good: see error
    )),
    created_at      TEXT,
    proxy_closed_at TEXT,
    attempts        INTEGER NOT NULL DEFAULT 0,  -- requests for this asset, all of them: past the first, ask before posting
    server_errors   INTEGER NOT NULL DEFAULT 0,  -- those that iconik broke down over; 20 make it failed
    next_attempt_at TEXT,
    submitted_at    TEXT,
    job_id          TEXT,                        -- empty if the answer that named it was lost
    error           TEXT,
    finished        TEXT GENERATED ALWAYS AS (CASE status WHEN 'submitted' THEN 'True' ELSE 'False' END) VIRTUAL,
    CHECK (status <> 'ready' OR next_attempt_at IS NOT NULL)
) WITHOUT ROWID;

-- Each holds only the rows that the service still has to look at.
CREATE INDEX items_pending    ON items (created_at)      WHERE status = 'pending';
CREATE INDEX items_early      ON items (proxy_closed_at) WHERE status = 'early';
CREATE INDEX items_ready      ON items (next_attempt_at) WHERE status = 'ready';
CREATE INDEX items_submitting ON items (object_id)       WHERE status = 'submitting';
CREATE INDEX items_failed     ON items (object_id)       WHERE status = 'failed';

CREATE VIEW problems AS
    SELECT object_id, title, status, attempts, next_attempt_at, error FROM items
    WHERE status IN ('ready', 'submitting', 'failed') AND error IS NOT NULL
    ORDER BY status, next_attempt_at;

CREATE VIEW summary AS
    SELECT status, count(*) AS items FROM items GROUP BY status ORDER BY status;

PRAGMA user_version = 1;
