"""An engine in predicted time, without tokens."""
