"""The `leuko` command: arguments, commands and output."""
