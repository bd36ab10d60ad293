"""What a session is given to work with. Source of the shape: `anthropic.types.beta.sessions`, package 2.12."""

from typing import Literal

from galley_server.wire.base import Timestamp, Wire


class FileResource(Wire):
    """A file of the session. `file_id` is the session's own copy, not the uploaded file."""

    id: str
    type: Literal["file"] = "file"
    file_id: str
    mount_path: str
    created_at: Timestamp
    updated_at: Timestamp
