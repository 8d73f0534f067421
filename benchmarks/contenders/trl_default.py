"""TRL's SFTTrainer as it is: only rows, batch, learning rate and length are set."""

from __future__ import annotations

import common
import with_trl

if __name__ == "__main__":
    with_trl.train(common.job(), {})
