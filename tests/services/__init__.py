"""Real services that the tests start on this machine."""
