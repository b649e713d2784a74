CREATE TABLE "{table}_rotations" (
    old_key TEXT COLLATE "C" NOT NULL,
    new_key TEXT COLLATE "C" NOT NULL,
    masked_key BYTEA NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (old_key, new_key)
);
CREATE INDEX "{table}_rotations_end" ON "{table}_rotations" (expires_at);
INSERT INTO "{table}_rotations" VALUES ('shop:czN_R5_hcNc-U-JH8wUuQkPMnCoP-mIYU9k4XGGe-3c', 'shop:ir6Jd6OlXW5y-3zjRza1I8H1UFZSFfeyG0S4jKqQBp4', '\xe37f310c13126623cb4c6d736582b05253bbc97fd7fe1716077f8cb805be6599', 4000000000123456);
INSERT INTO "{table}_rotations" VALUES ('shop:czN_R5_hcNc-U-JH8wUuQkPMnCoP-mIYU9k4XGGe-3c', 'without-masked-key', '', 4000000000123455);
INSERT INTO "{table}_rotations" VALUES ('shop:czN_R5_hcNc-U-JH8wUuQkPMnCoP-mIYU9k4XGGe-3c', 'over', '', 1700000000123456);
