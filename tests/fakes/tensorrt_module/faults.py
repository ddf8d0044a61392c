"""What the stand-in for TensorRT is to do wrong, by environment variables, so that a subprocess does so as well.

=====================================  =================================================================
``SHOAL_FAKE_TENSORRT_VERSION``        its version (``10.13.3.9``)
``SHOAL_FAKE_TENSORRT_BUILD``          ``fail`` (gives no engine), ``crash`` (SIGSEGV)
``SHOAL_FAKE_TENSORRT_BUILD_S``        seconds that a build takes (0); a tenth with a timing cache that knows it
``SHOAL_FAKE_TENSORRT_BUILD_MIB``      memory that a build takes
``SHOAL_FAKE_TENSORRT_REFUSED``        operators that the parser does not know, by commas
``SHOAL_FAKE_TENSORRT_DESERIALIZE``    ``none``
``SHOAL_FAKE_TENSORRT_CONTEXT``        ``none``: no execution context is given
``SHOAL_FAKE_TENSORRT_EXECUTE``        ``false`` (refused), ``error`` (fails on the GPU), ``wrong`` (other numbers)
``SHOAL_FAKE_TENSORRT_EXECUTE_S``      seconds that each run takes more
``SHOAL_FAKE_TENSORRT_REFIT``          ``fail``, ``stale`` (vectors, such as biases, stay as they were)
``SHOAL_FAKE_TENSORRT_INT64``          ``narrow``: engines take and give 32 bits, as old ones did
``SHOAL_FAKE_TENSORRT_SCRATCH_MIB``    scratch memory that a context needs (1)
=====================================  =================================================================
"""

from __future__ import annotations

import os


def fault(name: str) -> str:
    """What the variable says, empty where it is not set."""
    return os.environ.get(f"SHOAL_FAKE_TENSORRT_{name}", "")


def number(name: str, default: float = 0.0) -> float:
    """The variable as a number."""
    return float(fault(name) or default)


def version() -> str:
    """The version to be."""
    return fault("VERSION") or "10.13.3.9"


def version_numbers() -> tuple[int, ...]:
    """It, to compare."""
    return tuple(int(part) for part in version().split("."))
