CREATE TABLE `{table}_rotations` (
    old_key VARBINARY(64) NOT NULL,
    new_key VARBINARY(64) NOT NULL,
    masked_key LONGBLOB NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (old_key, new_key),
    KEY `{table}_rotations_end` (expires_at)
) ENGINE = InnoDB;
INSERT INTO `{table}_rotations` VALUES ('shop:czN_R5_hcNc-U-JH8wUuQkPMnCoP-mIYU9k4XGGe-3c', 'shop:ir6Jd6OlXW5y-3zjRza1I8H1UFZSFfeyG0S4jKqQBp4', x'e37f310c13126623cb4c6d736582b05253bbc97fd7fe1716077f8cb805be6599', 4000000000123456);
INSERT INTO `{table}_rotations` VALUES ('shop:czN_R5_hcNc-U-JH8wUuQkPMnCoP-mIYU9k4XGGe-3c', 'without-masked-key', '', 4000000000123455);
INSERT INTO `{table}_rotations` VALUES ('shop:czN_R5_hcNc-U-JH8wUuQkPMnCoP-mIYU9k4XGGe-3c', 'over', '', 1700000000123456);
