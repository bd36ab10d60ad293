#!/usr/bin/env python3
"""healthcheck PATH-OR-URL: ends with 1, and says why, unless 200 is the answer. A path: of the proxy in here."""

import sys
import urllib.error
import urllib.request


def main(what: str) -> int:
    url = what if "://" in what else f"http://127.0.0.1:8430{what}"
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=8) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        sys.stdout.write(f"{error.code} {error.read(1000).decode(errors='replace')}\n")
        return 1
    except OSError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
