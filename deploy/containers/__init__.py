"""What `make` runs for docker-compose.yml, and what runs inside the containers."""
