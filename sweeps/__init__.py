"""Studies as data: which runs, in what order, what they cost, and where they run."""
