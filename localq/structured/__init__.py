"""What replies may be, and the tools that they may call."""
