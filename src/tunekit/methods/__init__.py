"""Training methods: one file each. A module holds its help, a frozen `Config` and `build(...) -> Trainer`."""
