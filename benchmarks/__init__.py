"""Every figure that Leuko claims; nothing here runs in the tests."""
