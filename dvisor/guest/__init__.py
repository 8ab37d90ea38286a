"""The guest: the only place that knows Linux. Bytes become facts: symbols, types, tasks, files."""
