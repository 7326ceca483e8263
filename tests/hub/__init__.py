"""A stand-in for the model hub: two origins on loopback, the API and resolve rules of the real one, and bad days.

    with StandIn() as hub:
        hub.add("org/model-GGUF", {"model-Q4_K_M.gguf": seeded(1 << 20)}, licence="apache-2.0")
        hub.fault("reset during the body", times=2)
        ...                     # HF_ENDPOINT=hub.url for the real huggingface_hub client
        assert [seen.method for seen in hub.requests] == ["HEAD", "GET"]

`server.py` speaks HTTP, `repositories.py` knows what the hub holds and who may see it, `faults.py` is the table of
what can go wrong.
"""

from hub.faults import FAULTS
from hub.repositories import TOKEN, Content, Repository, git_blob_id, seeded
from hub.server import Seen, StandIn

__all__ = ["FAULTS", "TOKEN", "Content", "Repository", "Seen", "StandIn", "git_blob_id", "seeded"]
