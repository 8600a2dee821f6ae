"""What operators ask over HTTP: the instances and the traces (`pdmesh status`, `drain`, `profile`, `trace`)."""
