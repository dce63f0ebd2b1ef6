"""What libraries say that nobody asked: native code that prints, warnings of a package about its own parts."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is printed inside, not even by native code, and no warning is raised or logged; errors are raised."""
    sys.stdout.flush()
    sys.stderr.flush()
    before, saved = logging.root.manager.disable, [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        logging.disable(logging.WARNING)
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)
        os.close(nowhere)
        logging.disable(before)
