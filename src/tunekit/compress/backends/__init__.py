"""Ways to fewer bits: one library each; what a module holds is `tunekit.compress.contract.Backend`."""
