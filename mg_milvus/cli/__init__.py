"""The command line: each command parses, makes one call of the library, and prints."""
