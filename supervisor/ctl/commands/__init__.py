"""The commands: each parses its options, makes a few calls and writes what came of it."""
