"""What the planner's plans are worth: tables, all of them simulated but for the time of a search."""
