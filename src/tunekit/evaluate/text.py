"""What metrics over text agree on before they compare."""

from __future__ import annotations

import unicodedata
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TextRules(BaseModel):
    """What is overlooked when two texts are compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strip: bool = Field(default=True, description="overlook white space at both ends")
    ignore_case: bool = Field(default=False, description="overlook upper and lower case")
    normalize: Literal["none", "nfkc"] = Field(
        default="none", description="nfkc: overlook the form of characters, such as full width"
    )

    def apply(self, text: str) -> str:
        """``text`` as it is compared."""
        if self.normalize == "nfkc":
            text = unicodedata.normalize("NFKC", text)
        if self.ignore_case:
            text = text.casefold()
        return text.strip() if self.strip else text
