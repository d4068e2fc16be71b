"""The optional job against other packages: they run in interpreters of their own and are reached through files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from peer_exchange import PEERS, Peer, UnavailableError  # noqa: E402

_ASKED: dict[str, Peer] = {}


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> object:
    """`peer(name)`: the answers of a peer to every case about it, all asked in one process at the first call."""

    def ask(name: str) -> Peer:
        if name not in _ASKED:
            _ASKED[name] = Peer(name, tmp_path_factory.mktemp(name))
        try:
            _ASKED[name].ask_all()
        except UnavailableError as reason:
            pytest.skip(str(reason))
        return _ASKED[name]

    return ask


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name in PEERS:
        versions = _ASKED[name].versions if name in _ASKED else {}
        if versions:
            shown = ", ".join(f"{package} {version}" for package, version in versions.items())
            terminalreporter.write_line(f"peer {name}: {shown}")
