"""Making quantized models: GPTQ and AWQ directories and GGUF files from full-precision weights.

Every production runs in a child process, is checked before it appears under its name, and goes on where it was when
it is interrupted and called again.
"""

from __future__ import annotations

from qlangchain.quantizer.made import Made
from qlangchain.quantizer.maker import ModelQuantizer, quantize

__all__ = ["Made", "ModelQuantizer", "quantize"]
