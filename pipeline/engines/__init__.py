"""All that knows an engine's or a device's quirks."""
