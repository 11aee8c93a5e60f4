"""The `leuko` command: its arguments, its commands and what they print."""
