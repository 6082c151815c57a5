"""The flags of the commands, and how a command starts."""
