"""A discrete-event simulation of a mesh that runs the very functions of services.scheduling on predicted step times."""
