"""Who may wait, for how long, and who of them goes next. Counts only; the engine behind it computes."""
