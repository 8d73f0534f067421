"""Adapters: one file each. A module holds its help, a frozen `Config` and `peft_config(config)`."""
