"""One small random model of each family, which nobody changes."""

from pathlib import Path

import pytest

from tests.helpers.models import EACH_FAMILY, MAKERS, save_random


@pytest.fixture(scope="session", params=EACH_FAMILY)
def folder(request, tmp_path_factory) -> Path:
    return save_random(MAKERS[request.param](), tmp_path_factory.mktemp("model") / request.param)
