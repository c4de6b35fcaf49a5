-- items.db, schema 3: one row for each asset and job. Times are UTC, as text: 2026-11-23T16:47:00.123Z

CREATE TABLE items (
    object_id       TEXT NOT NULL,                     -- the asset's UUID, in lower case
    job             TEXT NOT NULL DEFAULT 'analyze',   -- what iconik is to do for it: analyze, transcribe or faces
    title           TEXT,
    status          TEXT NOT NULL CHECK (status IN (
        'awaiting_proxy',   -- the asset was created; iconik is polled for its closed proxy at next_attempt_at, if that is set
        'awaiting_create',  -- a closed proxy came before the create
        'ready',            -- both came; an attempt is due at next_attempt_at
        'submitting',       -- an attempt is under way
        'submitted',        -- iconik has accepted the job, or had one already
        'done',             -- iconik has finished the job
        'skipped',          -- it is not to be done: see error
        'failed'            -- it needs a person: see error
    )),
    source          TEXT,                        -- how the asset was found: webhook, search, catch-up or menu
    created_at      TEXT,                        -- when the listener first saw the asset
    proxy_closed_at TEXT,
    version_id      TEXT,                        -- the version of the proxy that completed the item
    attempts        INTEGER NOT NULL DEFAULT 0,  -- since the item became ready, or a person retried it
    backoff         REAL NOT NULL DEFAULT 0,     -- seconds of the latest delay: the next one is twice as long
    waited          REAL NOT NULL DEFAULT 0,     -- seconds of delay in all: of its polls and, once it is ready, of its backoffs
    refused         INTEGER NOT NULL DEFAULT 0,  -- 1: iconik refused the latest attempt
    asked           INTEGER NOT NULL DEFAULT 0,  -- 1: a person retried it; 2: a person wants it done again
    asked_at        TEXT,                        -- when a person last retried it, or wanted it done again
    in_doubt_since  TEXT,                        -- by iconik's clock: since then iconik may have accepted a request that it did not answer
    absent_since    TEXT,                        -- since then iconik says that it has no such asset or, in doubt, no such job
    counted_on      TEXT,                        -- the day (UTC) on which it was counted against the limit
    last_attempt_at TEXT,                        -- when the latest attempt ended
    next_attempt_at TEXT,
    submitted_at    TEXT,                        -- by iconik's clock
    done_at         TEXT,
    job_id          TEXT,                        -- iconik's id of the job; empty if it is not known
    old_job_id      TEXT,                        -- the job of the run before a person's retry
    profile         TEXT,                        -- the analysis profile that was used; empty for iconik's choice
    media_type      TEXT,                        -- image, video, audio …
    duration        REAL,                        -- seconds
    error           TEXT,                        -- why it waits, was skipped or failed
    reason          TEXT,                        -- the same without ids and numbers, to group by
    finished        TEXT GENERATED ALWAYS AS
        (CASE WHEN status IN ('submitted', 'done', 'skipped') THEN 'True' ELSE 'False' END) VIRTUAL,
    PRIMARY KEY (object_id, job),
    CHECK (status <> 'ready' OR next_attempt_at IS NOT NULL)
) WITHOUT ROWID;

-- What the service asks uses one of these, so it takes no longer when there are more items.
-- The status at the end lets the view `summary` count in the indexes alone.
CREATE INDEX items_awaiting_proxy  ON items (next_attempt_at, created_at, status) WHERE status = 'awaiting_proxy';
CREATE INDEX items_awaiting_create ON items (proxy_closed_at, status) WHERE status = 'awaiting_create';
CREATE INDEX items_new             ON items (next_attempt_at, created_at, status, last_attempt_at)
    WHERE status = 'ready' AND last_attempt_at IS NULL;
CREATE INDEX items_new_uploads     ON items (next_attempt_at, created_at, status, last_attempt_at, source)
    WHERE status = 'ready' AND last_attempt_at IS NULL AND source IS NOT 'catch-up';
CREATE INDEX items_retries         ON items (counted_on IS NOT NULL, next_attempt_at, created_at, status, last_attempt_at, counted_on)
    WHERE status = 'ready' AND last_attempt_at IS NOT NULL;
-- Under a limit the newest assets go first, and uploads before what catch-up added.
CREATE INDEX items_newest_retries  ON items (created_at, next_attempt_at)
    WHERE status = 'ready' AND last_attempt_at IS NOT NULL AND counted_on IS NULL;
CREATE INDEX items_upload_retries  ON items (created_at, next_attempt_at, status, last_attempt_at, counted_on, source)
    WHERE status = 'ready' AND last_attempt_at IS NOT NULL AND counted_on IS NULL AND source IS NOT 'catch-up';
CREATE INDEX items_wanted_again    ON items (next_attempt_at, status, asked, counted_on) -- under a limit, before all others
    WHERE status = 'ready' AND asked = 2;
CREATE INDEX items_refused         ON items (reason, next_attempt_at, last_attempt_at) WHERE status = 'ready' AND refused = 1;
CREATE INDEX items_submitting      ON items (counted_on, created_at, status) WHERE status = 'submitting';
CREATE INDEX items_submitted       ON items (submitted_at, status) WHERE status = 'submitted';
CREATE INDEX items_done            ON items (done_at, status) WHERE status = 'done';
CREATE INDEX items_unmeasured      ON items (done_at) WHERE status = 'done' AND media_type IS NULL;
CREATE INDEX items_skipped         ON items (created_at, status) WHERE status = 'skipped';
CREATE INDEX items_failed          ON items (last_attempt_at, status) WHERE status = 'failed';

-- What people ask: status and the page group by reason, and report counts by day.
CREATE INDEX items_retries_by_reason ON items (reason, last_attempt_at, attempts, status, created_at, proxy_closed_at)
    WHERE status = 'ready' AND last_attempt_at IS NOT NULL AND reason IS NOT NULL;
CREATE INDEX items_failed_by_reason  ON items (reason, last_attempt_at, status) WHERE status = 'failed';
CREATE INDEX items_counted           ON items (counted_on, job, status, media_type, duration) WHERE counted_on IS NOT NULL;

-- The ledger: how many jobs were started on each day (UTC), and how many had been started by others.
CREATE TABLE usage (
    day     TEXT NOT NULL,
    job     TEXT NOT NULL,
    started INTEGER NOT NULL DEFAULT 0,  -- those in doubt included
    found   INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (day, job)
) WITHOUT ROWID;

-- What the service must remember from one start to the next.
CREATE TABLE state (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE VIEW problems AS
    SELECT object_id, job, title, status, attempts, next_attempt_at, error FROM items
    WHERE status = 'failed' OR status = 'submitting' AND error IS NOT NULL
        OR status = 'ready' AND last_attempt_at IS NOT NULL AND error IS NOT NULL
    ORDER BY status, next_attempt_at;

CREATE VIEW summary AS
    SELECT status, count(*) AS items, min(created_at) AS oldest FROM items WHERE status = 'awaiting_proxy' GROUP BY status
    UNION ALL SELECT status, count(*), min(proxy_closed_at) FROM items WHERE status = 'awaiting_create' GROUP BY status
    UNION ALL SELECT 'ready', new.items + retries.items, min(coalesce(new.oldest, retries.oldest), coalesce(retries.oldest, new.oldest))
        FROM (SELECT count(*) AS items, min(created_at) AS oldest FROM items WHERE status = 'ready' AND last_attempt_at IS NULL) AS new,
            (SELECT count(*) AS items, min(created_at) AS oldest FROM items WHERE status = 'ready' AND last_attempt_at IS NOT NULL) AS retries
        WHERE new.items + retries.items > 0
    UNION ALL SELECT status, count(*), min(created_at) FROM items WHERE status = 'submitting' GROUP BY status
    UNION ALL SELECT status, count(*), NULL FROM items WHERE status = 'submitted' GROUP BY status
    UNION ALL SELECT status, count(*), NULL FROM items WHERE status = 'done' GROUP BY status
    UNION ALL SELECT status, count(*), NULL FROM items WHERE status = 'skipped' GROUP BY status
    UNION ALL SELECT status, count(*), min(last_attempt_at) FROM items WHERE status = 'failed' GROUP BY status;

PRAGMA application_id = 1768124011;  -- "icnk" in ASCII: this file is iconik-listener's
PRAGMA user_version = 3;
