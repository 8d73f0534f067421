"""Quantized weights: one file each.

A module holds its help, a frozen `Config`, and:

- `METHOD`: how transformers calls it in a model's `config.json`;
- `FROM_FULL`: whether weights of full precision can be quantized while they are loaded;
- `DEVICES`: where its quantized weights can be trained on;
- `PACKAGES`: the packages that it needs beyond tunekit's own, each with the line that installs it;
- `bits(config)`: bits of one weight;
- `quantization_config(config, compute, skip)`: transformers' own configuration;
- `stored(facts)`: what the configuration that lies beside quantized weights says of the block's keys.
"""
