"""What a run survives: killed at random, given hostile inputs, and going on for many rounds.

docs/reliability.md has the numbers, each with its command.
"""
