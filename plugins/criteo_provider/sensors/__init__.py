"""Tasks that wait for people without holding a worker slot."""
