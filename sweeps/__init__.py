"""Studies as data: their runs, the order and cost of training them, the executors, and the collected tables."""
