"""The doctor in this process."""

import sys
from pathlib import Path

import pytest
from doctor_lines import Doctor

from toa_exp.commands import doctor as command
from toa_exp.errors import ToaError


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Doctor:
    """The command in this process: exit status, lines and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*arguments: str) -> tuple[int, list[str], str]:
        capfd.readouterr()
        try:
            status = command.main(list(arguments))
        except ToaError as error:
            status = error.exit_status
            print(error, file=sys.stderr)
        said = capfd.readouterr()
        return status, said.out.splitlines(), said.err

    return run
