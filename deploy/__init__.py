"""Commands around the product that `make` and the containers run; not part of the installed package."""
