"""What python3 runs inside a sandbox: the hand, or with a socket's path as argument a bridge to the hand."""

from __future__ import annotations

import os
import sys

# Isolated mode (-I) leaves the script's own folder out of the path.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

if __name__ == "__main__":
    if len(sys.argv) > 1:
        from galley_sandbox.hand.bridge import main
    else:
        from galley_sandbox.hand.main import main
    main()
