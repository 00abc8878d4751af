"""What a result carries of where it comes from."""

import sys

import torch

from interp.storage.provenance import library_versions


def test_library_versions_are_those_installed() -> None:
    found = library_versions()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"transformers", "transformer-lens", "interp-workbench"} <= found.keys()
