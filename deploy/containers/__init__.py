"""What `make` runs for docker-compose.yml, and what the containers run inside."""
