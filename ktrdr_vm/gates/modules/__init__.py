"""The modules a task can call: their table, what they share, and a file for each group of them."""
