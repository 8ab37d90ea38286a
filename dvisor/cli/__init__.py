"""The command line: one file per verb, a client of the public API only."""
