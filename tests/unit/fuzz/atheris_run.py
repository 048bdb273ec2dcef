"""`atheris_run.py TARGET FOLDER SECONDS`: one target under libFuzzer, from its seeds."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))

with atheris.instrument_imports(include=["ktrdr_vm", "targets"]):
    from targets import SEEDS, TARGETS


def main() -> None:
    name, place, seconds = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    corpus = place / f"{name}.corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        (corpus / str(number)).write_bytes(seed)
    limits = [
        f"-max_total_time={seconds}",
        "-max_len=4096",
        "-timeout=20",
        "-rss_limit_mb=3000",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={place}/{name}-", str(corpus)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
