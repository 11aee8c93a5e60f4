"""`leuko score`: archives of millions of images, on one machine or many."""
