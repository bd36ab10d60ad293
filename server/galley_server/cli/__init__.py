"""The subcommands of `galley`, one module each: arguments in, exit status out. The work is done elsewhere."""
