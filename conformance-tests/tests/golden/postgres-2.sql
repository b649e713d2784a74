CREATE TABLE "{table}_schema" (version INTEGER NOT NULL PRIMARY KEY);
CREATE TABLE "{table}" (
    key TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    payload BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    last_seen_at BIGINT NOT NULL,
    version BIGINT NOT NULL,
    subject TEXT COLLATE "C",
    reap_at BIGINT NOT NULL DEFAULT 0
);
ALTER TABLE "{table}" SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.02);
CREATE INDEX "{table}_reap_at" ON "{table}" (reap_at);
CREATE INDEX "{table}_subject_key" ON "{table}" (subject, key) WHERE subject IS NOT NULL;
INSERT INTO "{table}_schema" (version) VALUES (1), (-2);
INSERT INTO "{table}" VALUES ('shop:4fQm1yBv9K7cTz0pLrXw2sNhJd8uEaGi6oVkYbC3MtR', '\x317b2263617274223a5b312c325d7d', 1700000000123456, 4000000000123456, 1700000100123456, -81985529216486896, 'üser-42', 1800000000123456);
INSERT INTO "{table}" VALUES ('without-subject', '\x317b7d', 1700000000123456, 4000000000123456, 1700000100123456, 7, NULL, 4000000000123456);
