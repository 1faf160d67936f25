"""The generated blocks of README.md and docs/: findings, status of the replication, lists."""
