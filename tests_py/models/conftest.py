"""Tiny models make many tiny calls: one thread each, where a test does not ask for more."""

import pytest

import sparsespan


@pytest.fixture(autouse=True)
def one_thread():
    sparsespan.set_num_threads(1)
    yield
    sparsespan.set_num_threads(0)
