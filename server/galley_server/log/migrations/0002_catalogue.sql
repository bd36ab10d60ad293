-- The catalogue: agents with every version they had, environments, files, and the answers to repeatable calls.
-- Times are whole microseconds since 1970, UTC. Bodies are JSON in the shape of the wire.

CREATE TABLE agents (
    pk INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL,               -- the current one
    created_at INTEGER NOT NULL,
    archived_at INTEGER
) STRICT;

CREATE INDEX agents_by_creation ON agents (created_at);

CREATE TABLE agent_versions (
    pk INTEGER PRIMARY KEY,
    agent TEXT NOT NULL REFERENCES agents (id),
    version INTEGER NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (agent, version)
) STRICT;

CREATE TRIGGER agent_versions_are_never_changed BEFORE UPDATE ON agent_versions
BEGIN
    SELECT raise(ABORT, 'a version of an agent is never changed');
END;

CREATE TRIGGER agent_versions_are_never_deleted BEFORE DELETE ON agent_versions
BEGIN
    SELECT raise(ABORT, 'a version of an agent is never deleted');
END;

CREATE TRIGGER agent_versions_are_not_replaced BEFORE INSERT ON agent_versions
WHEN EXISTS (SELECT 1 FROM agent_versions WHERE agent = NEW.agent AND version = NEW.version)
BEGIN
    SELECT raise(ABORT, 'a version of an agent is written once');
END;

CREATE TABLE environments (
    pk INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    body BLOB NOT NULL,
    archived_at INTEGER
) STRICT;

-- An archived environment gives its name free: it can never come back to claim it.
CREATE UNIQUE INDEX environments_by_name ON environments (name) WHERE archived_at IS NULL;

CREATE TABLE files (
    pk INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    sha256 TEXT NOT NULL,                   -- names the content in the directory of files
    size INTEGER NOT NULL,
    filename TEXT NOT NULL,
    mime_type TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    session_id TEXT                         -- the session it belongs to and goes with
) STRICT;

CREATE INDEX files_by_content ON files (sha256);
CREATE INDEX files_by_session ON files (session_id) WHERE session_id IS NOT NULL;
CREATE INDEX files_by_expiry ON files (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE answers (
    key TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    answer BLOB NOT NULL,
    at INTEGER NOT NULL
) STRICT;

CREATE INDEX answers_by_age ON answers (at);

-- Which agent and which environment are the default ones, and what they were made from.
CREATE TABLE defaults (
    name TEXT PRIMARY KEY,
    id TEXT NOT NULL,
    made_from TEXT NOT NULL
) STRICT, WITHOUT ROWID;
