from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from arm.board import ARCHITECTURES, Architecture, Board, build_wheel, debian_root

_BY_TARGET = {a.target: a for a in ARCHITECTURES}


@pytest.fixture(scope="session")
def arm_wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """arm_wheel("armv7l"): the wheel for it, built once a session."""

    @cache
    def wheel(target: str) -> Path:
        return build_wheel(_BY_TARGET[target], checkout, tmp_path_factory.mktemp(f"wheel-{target}"))

    return wheel


@pytest.fixture(scope="session")
def board(
    arm_wheel: Callable[[str], Path], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Board]:
    """board("aarch64"): an emulated board, made once a session. Its Debian tree stays in pytest's cache."""

    @cache
    def make(target: str) -> Board:
        architecture: Architecture = _BY_TARGET[target]
        wheel = arm_wheel(target)
        root = debian_root(architecture, request.config.cache.mkdir(f"debian-{architecture.debian}"))
        return Board.make(architecture, root, wheel, tmp_path_factory.mktemp(f"site-{target}"))

    return make
