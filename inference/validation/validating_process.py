"""The program that validates a release for another one: it prints the validation as JSON, or ends with a reason.

A graph that ends ONNX Runtime, or never ends, takes this process with it and no more.
"""

import sys
from pathlib import Path


def main(folder: Path, threads: int, keys: list[str]) -> None:
    """Validate a release that one of these keys (hex) must have signed, and print what was found."""
    from fedglm.core.processes.parent_process import end_with_parent
    from fedglm.inference.release.trust import Trust
    from fedglm.inference.validation.validate import validate_release
    from fedglm.privacy.keys.signing import PublicKey

    end_with_parent()
    trust = Trust.in_keys(map(PublicKey.from_hex, keys))
    print(validate_release(folder, trust=trust, threads=threads).model_dump_json())  # noqa: T201 - to who asked


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
