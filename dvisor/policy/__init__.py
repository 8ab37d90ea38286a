"""Pure decisions: no I/O, no clock, no guest reads; the one table of system calls."""
