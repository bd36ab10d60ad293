-- The log: sessions, their rows, large content, summaries, tombstones.
-- Times are whole microseconds since 1970, UTC. Hashes and signatures are 32 bytes.

CREATE TABLE sessions (
    pk INTEGER PRIMARY KEY AUTOINCREMENT,   -- never used again, so a row can never find itself in another session
    id TEXT NOT NULL UNIQUE,
    seq INTEGER NOT NULL,                   -- the head: last position, its hash, its time, and the signature over it
    hash BLOB NOT NULL,
    at INTEGER NOT NULL,
    signature BLOB NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0        -- the newest lease
) STRICT;

-- Kept in the order in which they came, all sessions mixed: an append then fills the last page, while rows sorted by
-- session would have every append rebalance pages in the middle (measured: five times the pages in each commit).
CREATE TABLE rows (
    pk INTEGER PRIMARY KEY,
    session INTEGER NOT NULL REFERENCES sessions (pk),
    seq INTEGER NOT NULL,
    id TEXT NOT NULL,
    type TEXT NOT NULL,
    at INTEGER NOT NULL,
    hash BLOB NOT NULL,
    cuts TEXT,                              -- NULL, or [[offset, sha256], ...]: content that lies in blobs, see blobs.py
    body BLOB NOT NULL
) STRICT;

-- With the type, so that a list of some types passes over the others without touching them.
CREATE UNIQUE INDEX rows_in_order ON rows (session, seq, type);
-- Ids begin with their time, so this one, too, grows at its end.
CREATE INDEX rows_by_id ON rows (id);

CREATE TABLE blobs (
    hash BLOB PRIMARY KEY,
    content BLOB NOT NULL
) STRICT;

CREATE TABLE blob_uses (
    session INTEGER NOT NULL REFERENCES sessions (pk),
    hash BLOB NOT NULL REFERENCES blobs (hash),
    PRIMARY KEY (session, hash)
) STRICT, WITHOUT ROWID;

CREATE INDEX blob_uses_by_hash ON blob_uses (hash);

CREATE TABLE tombstones (
    session_id TEXT PRIMARY KEY,
    session INTEGER NOT NULL UNIQUE,        -- the pk it had
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL,
    at INTEGER NOT NULL,
    caller TEXT NOT NULL,
    signature BLOB NOT NULL
) STRICT;

-- A cache of the fold over a session's rows, for lists and recovery.
CREATE TABLE summaries (
    session INTEGER PRIMARY KEY REFERENCES sessions (pk) ON DELETE CASCADE,
    session_id TEXT NOT NULL,
    status TEXT NOT NULL,
    agent_id TEXT NOT NULL,
    agent_version INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    archived INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT;

CREATE INDEX summaries_by_creation ON summaries (created_at, session_id);
CREATE INDEX summaries_by_agent ON summaries (agent_id, created_at, session_id);
CREATE INDEX summaries_by_status ON summaries (status, created_at, session_id);

-- Facts about the store as a whole: which key signs it, which version of the summaries it holds.
CREATE TABLE log_facts (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER rows_are_never_changed BEFORE UPDATE ON rows
BEGIN
    SELECT raise(ABORT, 'a row of the log is never changed');
END;

CREATE TRIGGER rows_go_only_behind_a_tombstone BEFORE DELETE ON rows
WHEN NOT EXISTS (SELECT 1 FROM tombstones WHERE session = OLD.session)
BEGIN
    SELECT raise(ABORT, 'a row of the log is only deleted with its session, after the tombstone is written');
END;

-- Also what keeps INSERT OR REPLACE out, which fires no delete trigger.
CREATE TRIGGER rows_are_added_at_the_end BEFORE INSERT ON rows
WHEN NEW.seq <> 1 + coalesce((SELECT max(seq) FROM rows WHERE session = NEW.session), 0)
    OR EXISTS (SELECT 1 FROM rows WHERE pk = NEW.pk)
BEGIN
    SELECT raise(ABORT, 'a row of the log is only added right behind the last one');
END;

CREATE TRIGGER sessions_never_return BEFORE INSERT ON sessions
WHEN EXISTS (SELECT 1 FROM tombstones WHERE session_id = NEW.id)
BEGIN
    SELECT raise(ABORT, 'the id of a deleted session is never used again');
END;

CREATE TRIGGER sessions_keep_their_names BEFORE UPDATE OF pk, id ON sessions
BEGIN
    SELECT raise(ABORT, 'a session keeps its id');
END;

CREATE TRIGGER sessions_never_go_back BEFORE UPDATE ON sessions
WHEN NEW.seq < OLD.seq OR NEW.epoch < OLD.epoch
BEGIN
    SELECT raise(ABORT, 'neither the position nor the epoch of a session ever goes back');
END;

CREATE TRIGGER sessions_go_only_behind_a_tombstone BEFORE DELETE ON sessions
WHEN NOT EXISTS (SELECT 1 FROM tombstones WHERE session = OLD.pk)
BEGIN
    SELECT raise(ABORT, 'a session is only deleted after its tombstone is written');
END;

CREATE TRIGGER sessions_are_not_replaced BEFORE INSERT ON sessions
WHEN EXISTS (SELECT 1 FROM sessions WHERE id = NEW.id OR pk = NEW.pk)
BEGIN
    SELECT raise(ABORT, 'a session exists once');
END;

CREATE TRIGGER tombstones_are_never_changed BEFORE UPDATE ON tombstones
BEGIN
    SELECT raise(ABORT, 'a tombstone is never changed');
END;

CREATE TRIGGER tombstones_are_never_deleted BEFORE DELETE ON tombstones
BEGIN
    SELECT raise(ABORT, 'a tombstone is never deleted');
END;

CREATE TRIGGER tombstones_say_the_truth BEFORE INSERT ON tombstones
WHEN NOT EXISTS (
    SELECT 1 FROM sessions
    WHERE pk = NEW.session AND id = NEW.session_id AND seq = NEW.seq AND hash = NEW.hash
) OR EXISTS (SELECT 1 FROM tombstones WHERE session_id = NEW.session_id OR session = NEW.session)
BEGIN
    SELECT raise(ABORT, 'a tombstone is written once, over the head of a session that exists');
END;

CREATE TRIGGER blobs_are_never_changed BEFORE UPDATE ON blobs
BEGIN
    SELECT raise(ABORT, 'content is never changed');
END;

CREATE TRIGGER blobs_go_with_their_last_use BEFORE DELETE ON blobs
WHEN EXISTS (SELECT 1 FROM blob_uses WHERE hash = OLD.hash)
BEGIN
    SELECT raise(ABORT, 'content is only deleted with the last session that uses it');
END;

CREATE TRIGGER blobs_are_not_replaced BEFORE INSERT ON blobs
WHEN EXISTS (SELECT 1 FROM blobs WHERE hash = NEW.hash)
BEGIN
    SELECT raise(IGNORE);
END;

-- For people with a SQLite shell.
CREATE VIEW log AS
SELECT sessions.id AS session_id, rows.seq, rows.id, rows.type,
    strftime('%Y-%m-%dT%H:%M:%fZ', rows.at / 1000000.0, 'unixepoch') AS at, rows.cuts, rows.body
FROM rows JOIN sessions ON sessions.pk = rows.session;
