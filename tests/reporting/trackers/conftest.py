"""What the tests of trackers share."""

from tests.reporting.trackers.recorder import recorder_fixture  # noqa: F401
