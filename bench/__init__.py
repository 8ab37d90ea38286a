"""Figures of dvisor, each beside what people use today. ``python -m bench`` prints the tables."""
