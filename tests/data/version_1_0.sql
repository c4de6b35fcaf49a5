BEGIN TRANSACTION;
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
INSERT INTO "items" VALUES('00000001-f0b4-11e7-a36b-0a580a00054a','Grüße aus Köln, 東京 🎬.mov','submitted','2026-10-21T12:00:00.000Z','2026-10-21T12:00:20.000Z',1,0,'2026-10-21T12:00:20.000Z','2026-10-21T12:00:20.375Z','c0ffee00-f0b4-11e7-a36b-0a580a00054a',NULL);
INSERT INTO "items" VALUES('00000002-f0b4-11e7-a36b-0a580a00054a','It''s "submitted"; -- its job''s id was lost.mov','submitted','2026-10-22T12:00:00.000Z','2026-10-22T12:00:20.000Z',1,0,'2026-10-22T12:00:20.000Z','2026-10-22T12:00:20.375Z',NULL,NULL);
INSERT INTO "items" VALUES('00000003-f0b4-11e7-a36b-0a580a00054a','','failed','2026-10-23T12:00:00.000Z','2026-10-23T12:00:20.000Z',1,0,'2026-10-23T12:00:20.000Z',NULL,NULL,'404: Asset does not exist');
INSERT INTO "items" VALUES('00000004-f0b4-11e7-a36b-0a580a00054a','retried by a person.mov','ready','2026-10-24T12:00:00.000Z','2026-10-24T12:00:20.000Z',1,0,'2026-11-20T11:45:20.375Z',NULL,NULL,'403: No access to the asset');
INSERT INTO "items" VALUES('00000005-f0b4-11e7-a36b-0a580a00054a','tried.mov','ready','2026-11-20T11:43:20.000Z','2026-11-20T11:43:40.000Z',1,1,'2026-11-20T12:43:40.375Z',NULL,NULL,'504: Gateway Time-out');
INSERT INTO "items" VALUES('00000006-f0b4-11e7-a36b-0a580a00054a','given up.mov','pending','2026-11-11T12:00:00.000Z',NULL,0,0,NULL,NULL,NULL,NULL);
INSERT INTO "items" VALUES('00000007-f0b4-11e7-a36b-0a580a00054a','waits for its proxy.mov','pending','2026-11-17T12:00:00.000Z',NULL,0,0,NULL,NULL,NULL,NULL);
INSERT INTO "items" VALUES('00000008-f0b4-11e7-a36b-0a580a00054a','found by catch-up.mov','pending','2026-11-18T12:00:00.000Z',NULL,1,0,NULL,NULL,NULL,NULL);
INSERT INTO "items" VALUES('00000009-f0b4-11e7-a36b-0a580a00054a',NULL,'early',NULL,'2026-11-19T12:00:00.000Z',0,0,NULL,NULL,NULL,NULL);
INSERT INTO "items" VALUES('0000000a-f0b4-11e7-a36b-0a580a00054a','cut off.mov','submitting','2026-11-20T11:45:00.000Z','2026-11-20T11:45:20.000Z',1,0,'2026-11-20T11:45:20.000Z',NULL,NULL,NULL);
INSERT INTO "items" VALUES('0000000b-f0b4-11e7-a36b-0a580a00054a',NULL,'ready','2026-11-20T11:46:40.000Z','2026-11-20T11:47:00.000Z',0,0,'2026-11-20T11:47:00.000Z',NULL,NULL,NULL);
INSERT INTO "items" VALUES('0000000c-f0b4-11e7-a36b-0a580a00054a','found by catch-up, and complete.mov','ready','2026-11-20T11:48:20.000Z','2026-11-20T11:48:40.000Z',1,0,'2026-11-20T11:48:40.000Z',NULL,NULL,NULL);
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
COMMIT;
PRAGMA user_version = 1;
