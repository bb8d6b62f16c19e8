"""Published figures as cited data files."""
