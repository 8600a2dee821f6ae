"""What each instance has been given, holds and still has to do."""
