"""What is simulated: devices, instances and links, and the file that describes them."""
