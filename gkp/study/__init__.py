"""The replication, in the order of its data: runs, facts, analysis, execution, report."""
