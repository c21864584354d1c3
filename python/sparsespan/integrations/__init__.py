"""Other people's frameworks: each module here is imported by name and needs its framework installed."""
