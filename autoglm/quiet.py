"""Suppress transformers' advice and progress bars on the user's terminal, and restore its settings afterwards."""

from __future__ import annotations

import logging as levels
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Have transformers log errors alone within the block, without progress bars and future warnings.

    Exceptions are not suppressed.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(levels.ERROR)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft calls functions that transformers will rename
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set")  # peft corrects it itself
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
