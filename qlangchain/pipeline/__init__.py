"""The road from a name to a running engine: source, plan, artifact, channel. LangChain comes after it.

Each step is a plain function, so that the command line and other programs can stop at any of them.
"""

from __future__ import annotations

from qlangchain.pipeline.defaulting import default_model
from qlangchain.pipeline.engines import DIRECTORY_RUNTIMES, engine_facts, engines
from qlangchain.pipeline.offering import offers
from qlangchain.pipeline.planning import choose, plan, steps
from qlangchain.pipeline.preparing import Prepared, descend, prepare
from qlangchain.pipeline.pulling import Pull, pull
from qlangchain.pipeline.realizing import Watching, realize
from qlangchain.pipeline.requirements import is_offline, requirements
from qlangchain.pipeline.sources import id_of, source_of

__all__ = [
    "DIRECTORY_RUNTIMES",
    "Prepared",
    "Pull",
    "Watching",
    "choose",
    "default_model",
    "descend",
    "engine_facts",
    "engines",
    "id_of",
    "is_offline",
    "offers",
    "plan",
    "prepare",
    "pull",
    "realize",
    "requirements",
    "source_of",
    "steps",
]
