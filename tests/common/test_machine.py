"""What is said of the machine is what the system says."""

import os

import numpy as np

from headstart.common.machine import library_version, processor_name, usable_cores


def test_cores_are_those_that_the_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert usable_cores() == len(before)


def test_versions_are_those_installed() -> None:
    assert library_version("numpy") == np.__version__
    assert library_version("no-such-distribution") is None


def test_the_processor_has_a_name() -> None:
    assert processor_name().strip()
