"""What docs/features.md promises of numbers, with the kernels of other x86-64 processors.

TensorFlow uses oneDNN's layers on processors with AVX-512 or AVX-VNNI and Eigen's on others, which
multiply matrices by oneDNN; `ONEDNN_MAX_CPU_ISA` bounds what oneDNN may use.
"""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

PROCESSORS = {
    "AVX-512 without VNNI": {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "AVX2": {"TF_ENABLE_ONEDNN_OPTS": "0", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "AVX2 and VNNI": {"TF_ENABLE_ONEDNN_OPTS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "SSE4.1": {"TF_ENABLE_ONEDNN_OPTS": "0", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
NUMERIC = (
    "tests/encoders/test_runtimes.py::test_it_agrees_with_the_reference",
    "tests/encoders/test_runtimes.py::test_a_row_does_not_depend_on_what_shares_its_batch",
    "tests/encoders/test_runtimes.py::test_the_number_of_cores_changes_no_bit",
    "tests/serving/test_pyfunc_model.py::test_a_row_does_not_depend_on_what_shares_its_request",
    "tests/models/test_predict.py::test_an_image_gets_the_same_bytes_whatever_shares_its_batch",
)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("processor", PROCESSORS)
def test_numbers_hold_with_the_kernels_of(processor: str) -> None:
    # Who finds bfloat16 in the processor fails or crashes where oneDNN is told not to use it.
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *NUMERIC]
    command += ["-k", "not bfloat16"]
    environment = os.environ | PROCESSORS[processor]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
