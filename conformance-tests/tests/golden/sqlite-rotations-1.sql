CREATE TABLE "{table}_rotations" (
    old_key TEXT NOT NULL COLLATE BINARY,
    new_key TEXT NOT NULL COLLATE BINARY,
    masked_key BLOB NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (old_key, new_key)
) STRICT;
CREATE INDEX "{table}_rotations_end" ON "{table}_rotations" (expires_at);
INSERT INTO "{table}_rotations" VALUES ('shop:czN_R5_hcNc-U-JH8wUuQkPMnCoP-mIYU9k4XGGe-3c', 'shop:ir6Jd6OlXW5y-3zjRza1I8H1UFZSFfeyG0S4jKqQBp4', x'e37f310c13126623cb4c6d736582b05253bbc97fd7fe1716077f8cb805be6599', 4000000000123456);
INSERT INTO "{table}_rotations" VALUES ('shop:czN_R5_hcNc-U-JH8wUuQkPMnCoP-mIYU9k4XGGe-3c', 'without-masked-key', x'', 4000000000123455);
INSERT INTO "{table}_rotations" VALUES ('shop:czN_R5_hcNc-U-JH8wUuQkPMnCoP-mIYU9k4XGGe-3c', 'over', x'', 1700000000123456);
