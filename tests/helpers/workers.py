"""What processes of the benchmark do: where a new process can import it."""

import os
import time

from bench import worker


def dies(connection, name, threads):
    connection.send(None)
    connection.recv()
    os._exit(3)


def raises(connection, name, threads):
    connection.send(None)
    connection.recv()
    connection.send(worker.error_text(KeyError(f"{name} on {threads}")))


def spins(seconds):
    """Take so much time of a processor."""
    while time.process_time() < seconds:
        pass
