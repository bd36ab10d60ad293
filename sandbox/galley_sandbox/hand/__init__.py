"""The hand: the small resident process that is PID 1 of a sandbox and runs its tool calls.

Standard library only, Python 3.8 syntax: these files run inside any image that has python3 and bash.
"""
