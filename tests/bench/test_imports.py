"""What an import costs: the command measures what it says. No time is asserted."""

from bench import imports


def test_prints_the_cost_and_the_modules(capsys):
    imports.main(["--rounds", "1"])
    first, *modules = capsys.readouterr().out.splitlines()
    assert first.startswith("import numpy ")
    assert any(line.split()[-1].startswith("xentropy") for line in modules)
