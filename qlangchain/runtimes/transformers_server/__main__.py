"""Load the model, listen on a free port of 127.0.0.1, announce it, and end with the parent.

The protocol with the parent is that of `host.py`: one line of JSON on stdin with what to serve and the key, one line
on stdout when the server listens, everything else on stderr.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any, TextIO

from qlangchain.toolchains.child import end_with_parent, exit_at_end_of_stdin


def main() -> None:
    """Serve until the parent ends."""
    config = json.loads(sys.stdin.readline())
    end_with_parent(config["parent_pid"])
    exit_at_end_of_stdin()
    announce = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(config, announce)


def serve(config: dict[str, Any], announce: TextIO) -> None:
    """Load what `config` names and serve it for ever."""
    import uvicorn

    from qlangchain.runtimes.transformers_server.generation import Model
    from qlangchain.runtimes.transformers_server.routes import application

    options = config["options"]
    model = Model(config["model"], context_length=options["context_length"], threads=options["threads"])
    app = application(model, name=config["alias"], key=config["api_key"])
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    announce.write(json.dumps({"port": listener.getsockname()[1], "engine_pid": os.getpid()}) + "\n")
    announce.flush()
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")).run(sockets=[listener])


if __name__ == "__main__":
    main()
