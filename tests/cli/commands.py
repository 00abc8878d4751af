"""Running commands as a user does."""

from click.testing import Result
from typer.testing import CliRunner

from interp.cli.main import app


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def passed(*arguments: object) -> str:
    """Standard output of a command that succeeds."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    """The one line of a command that refuses its input."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)  # no exception of ours came through
    assert "Traceback" not in result.output
    assert result.stdout == ""
    line = result.stderr.removesuffix("\n")
    assert line.startswith("error: ")
    assert "\n" not in line
    return line
