CREATE TABLE `{table}_schema` (version INT NOT NULL PRIMARY KEY) ENGINE = InnoDB;
CREATE TABLE `{table}` (
    `key` VARBINARY(64) NOT NULL PRIMARY KEY,
    payload LONGBLOB NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    last_seen_at BIGINT NOT NULL,
    version BIGINT NOT NULL,
    subject VARBINARY(255),
    KEY `{table}_expires_at` (expires_at),
    KEY `{table}_subject` (subject)
) ENGINE = InnoDB;
INSERT INTO `{table}_schema` (version) VALUES (1);
INSERT INTO `{table}` VALUES ('shop:4fQm1yBv9K7cTz0pLrXw2sNhJd8uEaGi6oVkYbC3MtR', x'317b2263617274223a5b312c325d7d', 1700000000123456, 4000000000123456, 1700000100123456, -81985529216486896, x'c3bc7365722d3432');
INSERT INTO `{table}` VALUES ('without-subject', x'317b7d', 1700000000123456, 4000000000123456, 1700000100123456, 7, NULL);
