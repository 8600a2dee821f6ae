"""Other ways to move packed bytes between two processes, measured beside ours."""
