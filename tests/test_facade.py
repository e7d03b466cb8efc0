"""`import ringfence`: every name is there, and nothing is loaded before somebody asks for it."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import ringfence


@pytest.mark.parametrize("name", ringfence.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(ringfence, name) is not None


def test_names_that_are_imported_are_those_that_are_public() -> None:
    homes = [name for names in ringfence._HOMES.values() for name in names]
    assert sorted(homes) == sorted(ringfence.__all__)


def test_a_name_that_there_is_not_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Gard'"):
        _ = ringfence.Gard


def test_importing_it_loads_none_of_its_parts() -> None:
    program = "import sys, ringfence; print([n for n in sys.modules if n in ('numpy', 'pydantic', 'torch', 'httpx')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_command_tells_its_version() -> None:
    ringfence = Path(sys.executable).with_name("ringfence")
    done = subprocess.run([ringfence, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ringfence {version('ringfence')}\n"


def test_make_help_lists_every_target_that_there_is_to_ask_for() -> None:
    root = Path(__file__).parent.parent
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=root, capture_output=True, text=True, check=True
    )
    (phony,) = [line for line in (root / "Makefile").read_text().splitlines() if line.startswith(".PHONY: ")]
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == phony.split()[1:]


def test_missing_framework_is_named_with_what_to_install() -> None:
    program = (
        "import sys; sys.modules['langchain_core'] = None\n"
        "import ringfence\n"
        "try: ringfence.guarded_runnable\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'ringfence[langchain]'" in done.stdout
