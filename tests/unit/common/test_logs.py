import logging
import re

import pytest

from common.clock import ManualClock
from common.ids import RequestId
from common.logs import LimitedLog, LineFormatter, traced

LOG = logging.getLogger("tests.logs")


def record(message, exc_info=None):
    return logging.LogRecord("engine", logging.WARNING, __file__, 1, message, (), exc_info)


def test_a_record_is_one_line_with_time_level_and_instance():
    line = LineFormatter("d0").format(record("two\nlines"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING d0 engine two ⏎ lines", line)


def test_a_traceback_stays_on_the_line():
    try:
        raise ValueError("why")
    except ValueError as error:
        line = LineFormatter("d0").format(record("failed", (type(error), error, error.__traceback__)))
    assert "\n" not in line
    assert line.endswith("ValueError: why")


def test_a_trace_says_started_and_complete_with_the_request(caplog):
    caplog.set_level(logging.DEBUG)
    clock = ManualClock()
    with traced(LOG, clock, "hand-off", RequestId("r1"), split=5):
        clock.advance(2.0)
    assert caplog.messages == [
        "hand-off started request=r1 split=5",
        "hand-off complete request=r1 split=5 seconds=2.000000",
    ]


def test_a_trace_says_failed_and_passes_the_error_on(caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ValueError, match="why"), traced(LOG, ManualClock(), "step", RequestId("r1")):
        raise ValueError("why")
    assert caplog.messages[-1] == "step failed request=r1 seconds=0.000000 error=ValueError('why')"


def test_a_provoked_warning_is_rare_and_counts_what_it_left_out(caplog):
    clock = ManualClock()
    log = LimitedLog(LOG, clock, interval_s=5.0)
    for number in range(100):
        log.warning("bad frame %s", number)
    clock.advance(5.0)
    log.warning("bad frame %s", "again")
    assert caplog.messages == ["bad frame 0", "bad frame again (99 more since the last such line)"]


def test_configured_logs_go_to_the_stream_of_the_process(tmp_path):
    import subprocess
    import sys

    code = "import sys, logging; from common.logs import configure_logs; configure_logs('d0', 'info', sys.stderr);"
    code += "logging.getLogger('a').info('shown'); logging.getLogger('a').debug('hidden')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.endswith("INFO d0 a shown\n")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
