"""Text work, on threads and in a process of its own: the event loop never tokenises."""
