"""What the shipped images have for people's projects, asked in a VM of each."""

from __future__ import annotations

import json

import pytest
from laboratory.command import assert_nothing_left, run, start
from laboratory.instances import LabInstance
from laboratory.lab import Lab

BOTH = """set -e
git lfs version >/dev/null
python3 -m pip --version >/dev/null
python3 -m venv /tmp/venv
/tmp/venv/bin/python -c 'import pip'
docker compose version --short
python3 -c 'import socket; socket.create_server(("::", 0), family=socket.AF_INET6)'
"""
LARGER = f"""{BOTH}
node --eval 'require("fs")'
npm --version >/dev/null
uv --version
uv venv --quiet --python /usr/bin/python3 /tmp/uv
echo 'int main(void) {{ return 0; }}' | cc -x c - -o /tmp/a.out
/tmp/a.out
"""
PROFILE = """\
version: 1
name: larger
image: debian-13-larger
resources: {vcpus: 2, memory: 2GiB, disk: 10GiB}
"""


def test_the_shipped_image(lab: Lab, instance: LabInstance) -> None:
    done = run(lab, "exec", instance.instance_id, "--", "sh", "-c", BOTH)
    assert done.code == 0, done.stderr


@pytest.mark.full
@pytest.mark.usefixtures("larger_image")
def test_the_larger_image(lab: Lab) -> None:
    (lab.scratch / "larger-image.yaml").write_text(PROFILE)
    instance_id = lab.new_id("larger-image")
    words = ["apply", "larger-image.yaml", "--instance-id", instance_id, "--cold", "--keep", "always", "--json"]
    made = start(lab, instance_id, *words, cwd=lab.scratch).wait()
    try:
        assert made.code == 0, made.stderr
        done = run(lab, "exec", instance_id, "--", "sh", "-c", LARGER)
        assert done.code == 0 and "uv 0." in done.stdout, done.stderr
        assert json.loads(made.stdout)["outcome"] == "passed"
    finally:
        run(lab, "destroy", instance_id)
    assert_nothing_left(lab, instance_id)
