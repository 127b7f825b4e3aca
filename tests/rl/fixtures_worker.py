"""A short life of an environment's worker: its process imports this file, and no test."""


def die(connection, suite, split, options):
    """In place of a worker's life."""
