CREATE TABLE "{table}_schema" (version INTEGER NOT NULL PRIMARY KEY);
CREATE TABLE "{table}" (
    key TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    payload BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    last_seen_at BIGINT NOT NULL,
    version BIGINT NOT NULL,
    subject TEXT COLLATE "C"
);
CREATE INDEX "{table}_expires_at" ON "{table}" (expires_at);
CREATE INDEX "{table}_subject" ON "{table}" (subject) WHERE subject IS NOT NULL;
INSERT INTO "{table}_schema" (version) VALUES (1);
INSERT INTO "{table}" VALUES ('shop:4fQm1yBv9K7cTz0pLrXw2sNhJd8uEaGi6oVkYbC3MtR', '\x317b2263617274223a5b312c325d7d', 1700000000123456, 4000000000123456, 1700000100123456, -81985529216486896, 'üser-42');
INSERT INTO "{table}" VALUES ('without-subject', '\x317b7d', 1700000000123456, 4000000000123456, 1700000100123456, 7, NULL);
