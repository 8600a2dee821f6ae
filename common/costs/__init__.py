"""What a step of an instance costs in seconds: the shapes of steps and the linear models of their times."""
