"""The `zoo` command: one file per verb."""
