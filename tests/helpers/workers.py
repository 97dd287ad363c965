"""Processes of the benchmark that fail: where a new process can import them."""

import os

from bench import worker


def dies(connection, name, threads):
    connection.send(None)
    connection.recv()
    os._exit(3)


def raises(connection, name, threads):
    connection.send(None)
    connection.recv()
    connection.send(worker.error_text(KeyError(f"{name} on {threads}")))
