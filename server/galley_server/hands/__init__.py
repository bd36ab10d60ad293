"""What executes a tool call: the tools on offer, who may call them, in which order, and the sandbox that runs them."""
