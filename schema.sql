-- items.db, schema 2: one row an asset. Times are UTC, as text: 2026-11-23T16:47:00.123Z

CREATE TABLE items (
    object_id       TEXT NOT NULL PRIMARY KEY,  -- the asset's UUID, in lower case
    title           TEXT,
    status          TEXT NOT NULL CHECK (status IN (
        'awaiting_proxy',   -- created; iconik is asked for its closed proxy at next_attempt_at, and not if that is empty
        'awaiting_create',  -- a closed proxy came; the create did not yet
        'ready',            -- both came; an attempt is due at next_attempt_at
        'submitting',       -- an attempt is under way
        'submitted',        -- iconik has the job
        'skipped',          -- not to be analyzed: see error
        'failed'            -- needs a person: see error
    )),
    created_at      TEXT,
    proxy_closed_at TEXT,
    ready_at        TEXT,                        -- when it became ready, or a person had it retried
    attempts        INTEGER NOT NULL DEFAULT 0,  -- since ready_at, without those that only tried whether iconik is back
    in_doubt        INTEGER NOT NULL DEFAULT 0,  -- 1: iconik may have taken a POST that it did not answer
    last_attempt_at TEXT,                        -- when the last attempt began or, once it is over, when it ended
    next_attempt_at TEXT,
    submitted_at    TEXT,
    job_id          TEXT,                        -- empty if iconik had the job already, or its answer was lost
    error           TEXT,
    finished        TEXT GENERATED ALWAYS AS (CASE WHEN status IN ('submitted', 'skipped') THEN 'True' ELSE 'False' END) VIRTUAL,
    CHECK (status <> 'ready' OR next_attempt_at IS NOT NULL)
) WITHOUT ROWID;

-- Each row is in exactly one of these, so nothing that the service asks takes longer because there are more items.
-- The status at the end lets the view `summary` count in the indexes alone.
CREATE INDEX items_awaiting_proxy  ON items (next_attempt_at, created_at, status) WHERE status = 'awaiting_proxy';
CREATE INDEX items_awaiting_create ON items (proxy_closed_at, status) WHERE status = 'awaiting_create';
CREATE INDEX items_ready           ON items (last_attempt_at IS NOT NULL, next_attempt_at, created_at, status) WHERE status = 'ready';
CREATE INDEX items_submitting      ON items (created_at, status) WHERE status = 'submitting';
CREATE INDEX items_submitted       ON items (submitted_at, status) WHERE status = 'submitted';
CREATE INDEX items_skipped         ON items (created_at, status) WHERE status = 'skipped';
CREATE INDEX items_failed          ON items (created_at, status) WHERE status = 'failed';

-- What the service must remember from one start to the next.
CREATE TABLE state (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE VIEW problems AS
    SELECT object_id, title, status, attempts, next_attempt_at, error FROM items
    WHERE status = 'failed' OR status = 'submitting' AND error IS NOT NULL
        OR status = 'ready' AND last_attempt_at IS NOT NULL AND error IS NOT NULL
    ORDER BY status, next_attempt_at;

CREATE VIEW summary AS
    SELECT status, count(*) AS items, min(created_at) AS oldest FROM items WHERE status = 'awaiting_proxy' GROUP BY status
    UNION ALL SELECT status, count(*), min(proxy_closed_at) FROM items WHERE status = 'awaiting_create' GROUP BY status
    UNION ALL SELECT status, count(*), min(created_at) FROM items WHERE status = 'ready' GROUP BY status
    UNION ALL SELECT status, count(*), min(created_at) FROM items WHERE status = 'submitting' GROUP BY status
    UNION ALL SELECT status, count(*), NULL FROM items WHERE status = 'submitted' GROUP BY status
    UNION ALL SELECT status, count(*), NULL FROM items WHERE status = 'skipped' GROUP BY status
    UNION ALL SELECT status, count(*), min(created_at) FROM items WHERE status = 'failed' GROUP BY status;

PRAGMA application_id = 1768124011;  -- "icnk" in ASCII: this file is iconik-listener's
PRAGMA user_version = 2;
