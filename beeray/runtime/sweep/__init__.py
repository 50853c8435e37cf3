"""A sweep of trials: its folder, what is tried next, what is stopped, and what a person sees of it."""
