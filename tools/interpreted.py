"""pytest on sources alone: compiled modules are passed over, as if there had been no C compiler."""

import importlib.machinery as machinery
import sys

SOURCES = (machinery.SourceFileLoader, machinery.SOURCE_SUFFIXES)
EXTENSIONS = (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES)
sys.path_hooks.insert(0, machinery.FileFinder.path_hook(SOURCES, EXTENSIONS))
sys.path_importer_cache.clear()

import pytest  # noqa: E402

from brokerkit._compiled import COMPILED  # noqa: E402

assert not COMPILED
sys.exit(pytest.main())
