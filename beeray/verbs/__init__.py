"""What the commands do, a module each; `beeray/<verb>.py` reads the config before it imports any of them."""
