"""What `make` and the containers run around the product; not part of the installed package."""
