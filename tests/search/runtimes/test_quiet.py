"""What native code prints is dropped inside, and nothing is outside."""

from __future__ import annotations

import logging
import os
import warnings

import pytest

from search.runtimes.quiet import quiet


def test_nothing_is_printed_inside_and_everything_after(capfd, caplog):
    with quiet():
        os.write(1, b"native\n")
        os.write(2, b"native\n")
        logging.getLogger("a package").warning("deprecated")
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
    os.write(1, b"after\n")
    os.write(2, b"errors\n")
    assert capfd.readouterr() == ("after\n", "errors\n")
    assert caplog.records == []
    logging.getLogger("a package").warning("heard")
    assert [record.message for record in caplog.records] == ["heard"]


def test_an_error_comes_through_and_printing_is_restored(capfd):
    with pytest.raises(RuntimeError, match="broken"), quiet():
        raise RuntimeError("broken")
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "after\n"
    with pytest.raises(DeprecationWarning):
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
