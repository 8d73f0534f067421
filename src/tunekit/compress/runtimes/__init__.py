"""Programs that read a smaller model as its users do; what a module holds is `tunekit.compress.contract.Runtime`."""
