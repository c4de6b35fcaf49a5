BEGIN TRANSACTION;
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
INSERT INTO "items" VALUES('00000001-f0b4-11e7-a36b-0a580a00054a','Grüße aus Köln, 東京 🎬.mov','submitted','2026-10-21T12:00:00.000Z','2026-10-21T12:00:20.000Z','2026-10-21T12:00:20.000Z',1,0,'2026-10-21T12:00:20.375Z',NULL,'2026-10-21T12:00:20.375Z','c0ffee00-f0b4-11e7-a36b-0a580a00054a',NULL);
INSERT INTO "items" VALUES('00000002-f0b4-11e7-a36b-0a580a00054a','It''s "submitted"; -- its job''s id was lost.mov','submitted','2026-11-19T12:00:00.000Z','2026-11-19T12:00:20.000Z','2026-11-19T12:00:20.000Z',1,0,'2026-11-19T12:00:20.375Z',NULL,'2026-11-19T12:00:20.375Z',NULL,NULL);
INSERT INTO "items" VALUES('00000003-f0b4-11e7-a36b-0a580a00054a','','failed','2026-10-23T12:00:00.000Z','2026-10-23T12:00:20.000Z','2026-10-23T12:00:20.000Z',1,0,'2026-10-23T12:00:20.375Z',NULL,NULL,NULL,'404: Asset does not exist');
INSERT INTO "items" VALUES('00000004-f0b4-11e7-a36b-0a580a00054a','failed in doubt.mov','failed','2026-10-24T12:00:00.000Z','2026-10-24T12:00:20.000Z','2026-10-24T12:00:20.000Z',2,1,'2026-10-24T12:10:20.625Z',NULL,NULL,NULL,'iconik did not answer for 7 days');
INSERT INTO "items" VALUES('00000005-f0b4-11e7-a36b-0a580a00054a','a subclip','skipped','2026-10-25T12:00:00.000Z','2026-10-25T12:00:20.000Z','2026-10-25T12:00:20.000Z',1,0,'2026-10-25T12:00:20.375Z',NULL,NULL,NULL,'assets of type SUBCLIP are skipped (skip_types in config.ini)');
INSERT INTO "items" VALUES('00000006-f0b4-11e7-a36b-0a580a00054a','skipped by a person.mov','skipped','2026-10-26T12:00:00.000Z','2026-10-26T12:00:20.000Z','2026-10-26T12:00:20.000Z',0,0,NULL,'2026-10-26T12:00:20.000Z',NULL,NULL,'skipped by a person');
INSERT INTO "items" VALUES('00000007-f0b4-11e7-a36b-0a580a00054a','retried by a person.mov','ready','2026-10-27T12:00:00.000Z','2026-10-27T12:00:20.000Z','2026-11-20T11:45:50.000Z',0,0,'2026-10-27T12:00:20.375Z','2026-11-20T11:45:50.000Z',NULL,NULL,'403: No access to the asset');
INSERT INTO "items" VALUES('00000008-f0b4-11e7-a36b-0a580a00054a','polled no more.mov','awaiting_proxy','2026-11-11T12:00:00.000Z',NULL,NULL,0,0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "items" VALUES('00000009-f0b4-11e7-a36b-0a580a00054a','polled.mov','awaiting_proxy','2026-11-17T12:00:00.000Z',NULL,NULL,0,0,NULL,'2026-11-21T12:00:00.000Z',NULL,NULL,NULL);
INSERT INTO "items" VALUES('0000000a-f0b4-11e7-a36b-0a580a00054a',NULL,'awaiting_create',NULL,'2026-11-20T00:00:00.000Z',NULL,0,0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "items" VALUES('0000000b-f0b4-11e7-a36b-0a580a00054a','cut off in doubt.mov','submitting','2026-11-20T09:30:00.000Z','2026-11-20T09:30:20.000Z','2026-11-20T09:30:20.000Z',2,1,'2026-11-20T09:40:20.375Z',NULL,NULL,NULL,'504: Gateway Time-out');
INSERT INTO "items" VALUES('0000000c-f0b4-11e7-a36b-0a580a00054a','cut off.mov','submitting','2026-11-20T11:40:00.000Z','2026-11-20T11:40:20.000Z','2026-11-20T11:40:20.000Z',1,0,'2026-11-20T11:40:20.125Z',NULL,NULL,NULL,NULL);
INSERT INTO "items" VALUES('0000000d-f0b4-11e7-a36b-0a580a00054a','tried.mov','ready','2026-11-20T11:43:20.000Z','2026-11-20T11:43:40.000Z','2026-11-20T11:43:40.000Z',1,0,'2026-11-20T11:43:40.375Z','2026-11-20T11:53:40.375Z',NULL,NULL,'504: Gateway Time-out');
INSERT INTO "items" VALUES('0000000e-f0b4-11e7-a36b-0a580a00054a','in doubt.mov','ready','2026-11-20T11:45:00.000Z','2026-11-20T11:45:20.000Z','2026-11-20T11:45:20.000Z',1,1,'2026-11-20T11:45:20.375Z','2026-11-20T11:55:20.375Z',NULL,NULL,'504: Gateway Time-out');
INSERT INTO "items" VALUES('0000000f-f0b4-11e7-a36b-0a580a00054a',NULL,'ready','2026-11-20T11:46:40.000Z','2026-11-20T11:47:00.000Z','2026-11-20T11:47:00.000Z',0,0,NULL,'2026-11-20T11:47:00.000Z',NULL,NULL,NULL);
CREATE TABLE state (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
INSERT INTO "state" VALUES('assets_floor','2026-10-25T12:00:00.000Z');
INSERT INTO "state" VALUES('assets_passed_over','');
INSERT INTO "state" VALUES('assets_resume_at','');
INSERT INTO "state" VALUES('assets_seen_until','2026-11-20T11:00:00.000Z');
INSERT INTO "state" VALUES('catch_up','');
INSERT INTO "state" VALUES('checked_at','2026-11-20T08:00:00.000Z');
INSERT INTO "state" VALUES('first_started_at','2026-10-20T12:00:00.000Z');
INSERT INTO "state" VALUES('jobs_seen_until','2026-11-20T11:00:00.000Z');
INSERT INTO "state" VALUES('listening_at','127.0.0.1:5005');
INSERT INTO "state" VALUES('registered_url','https://listener.example.com/iconik/webhook');
INSERT INTO "state" VALUES('webhook_enabled_at 7e3c2a9e-f0b4-11e7-a36b-0a580a00054a','2026-11-01T12:00:00.000Z');
INSERT INTO "state" VALUES('webhook_left_disabled 7e3c2a9e-f0b4-11e7-a36b-0a580a00054a','1');
CREATE INDEX items_awaiting_proxy  ON items (next_attempt_at, created_at, status) WHERE status = 'awaiting_proxy';
CREATE INDEX items_awaiting_create ON items (proxy_closed_at, status) WHERE status = 'awaiting_create';
CREATE INDEX items_ready           ON items (last_attempt_at IS NOT NULL, next_attempt_at, created_at, status) WHERE status = 'ready';
CREATE INDEX items_submitting      ON items (created_at, status) WHERE status = 'submitting';
CREATE INDEX items_submitted       ON items (submitted_at, status) WHERE status = 'submitted';
CREATE INDEX items_skipped         ON items (created_at, status) WHERE status = 'skipped';
CREATE INDEX items_failed          ON items (created_at, status) WHERE status = 'failed';
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
COMMIT;
PRAGMA application_id = 1768124011;
PRAGMA user_version = 2;
