"""A pytest plugin: with CI=true, a test skipped for a reason that is not on the list fails the run."""

import os

import pytest

ALLOWED = (
    "needs a CUDA or ROCm device",
    "needs a container engine",
    "needs a Chromium browser",
    "needs the public traces",
    "needs the mooncake library",
)
"""Reasons why a test may be skipped; a reason may go on after one of these."""


def is_allowed(reason: str) -> bool:
    """Whether CI accepts this reason."""
    return reason.removeprefix("Skipped: ").startswith(ALLOWED)


class SkipPolicy:
    """Collects the skips of one run."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not hasattr(report, "wasxfail"):
            self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.refused and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.refused:
            terminalreporter.write_line(f"SKIP NOT ALLOWED {line}", red=True)
        if self.refused:
            terminalreporter.write_line(f"allowed reasons: {', '.join(map(repr, ALLOWED))}")

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            if not is_allowed(reason):
                self.refused.append(f"{report.nodeid}: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI") == "true":
        config.pluginmanager.register(SkipPolicy(), "skip_policy")
