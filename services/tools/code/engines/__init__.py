"""The engines that look at code; each keeps the `Engine` protocol of `services.tools.code.model`."""
