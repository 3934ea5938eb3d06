"""What every service shares: server runtime, channels, status mapping, settings, telemetry, clearance."""
