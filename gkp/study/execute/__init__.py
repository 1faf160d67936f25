"""Doing runs: prune, train, attack, record; several processes, any number of interruptions."""
