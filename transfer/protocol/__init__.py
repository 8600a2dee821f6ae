"""What source and sink say to each other, and what each decides on hearing it: pure, without torch or sockets."""
