"""What others measured or estimate, beside what the planner believes: the planner is never tuned to it."""
