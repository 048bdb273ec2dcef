import jsonschema
import pytest

from ktrdr_vm.errors import DocumentError, UsageError
from ktrdr_vm.policy.owner_policy import OwnerPolicy, check_policy, parse_policy
from ktrdr_vm.profile.json_schema import render_json_schema
from ktrdr_vm.profile.load import load_profile
from ktrdr_vm.profile.strict_yaml import load_yaml

MINIMAL = "version: 1\nname: p\nimage: debian-13-docker\n"


def read_nothing(reference, source):
    raise UsageError(f"{reference} is not there", hint="x")


def load(text, files=None):
    def read(reference, source):
        if files and reference in files:
            return reference, files[reference].encode()
        return read_nothing(reference, source)

    return load_profile(text, "p.yaml", read)


def problems_of(text, files=None):
    with pytest.raises(DocumentError) as caught:
        load(text, files)
    return [str(problem) for problem in caught.value.problems]


def test_everything_but_three_keys_has_a_safe_default():
    profile = load(MINIMAL).profile
    assert profile.mounts == () and profile.secrets == () and profile.egress.allow == () and profile.mode == "sandbox"


@pytest.mark.parametrize("egress", ["egress:\n", "egress: {}\n", "egress: {allow: []}\n", "egress: {allow: }\n"])
def test_no_allowlist_allows_nothing(egress):
    assert load(MINIMAL + egress).profile.egress.allow == ()


def test_whole_profile():
    text = MINIMAL + (
        "mode: interactive\nresources: {vcpus: 4, memory: 3GiB, disk: 30GiB}\n"
        "workspace: {source: ., transfer: copy, include: ['*.csv']}\nmounts: [{source: ./data, target: /data}]\n"
        "egress: {allow: [{host: github.com, ports: [22, 443]}, {host: '*.example.com'}, {cidr: 198.51.100.7/32, ports: [5432]}]}\n"
        "secrets: [{name: t, source: {env: KTRDR_T}, mode: '0440', ttl: 30m}]\nenvironment: {A: true, B: 2}\n"
        "workload: {command: [make, x]}\ngates: [startability]\nvars: {x: 1}\nartifacts: [/workspace/out]\n"
    )
    profile = load(text).profile
    assert profile.resources.memory == 3072
    assert profile.environment == (("A", "true"), ("B", "2"))
    assert (
        profile.secrets[0].path == "/run/secrets/t"
        and profile.secrets[0].mode == 0o440
        and profile.secrets[0].ttl == 1800
    )
    assert [str(rule) for rule in profile.egress.allow] == [
        "github.com:22,443",
        "*.example.com:443",
        "198.51.100.7/32:5432",
    ]
    assert profile.mounts[0].readonly
    assert check_policy(load(text), OwnerPolicy(), "/home/me/project") == []
    jsonschema.validate(load_yaml(text, "p").data, render_json_schema())


def test_what_this_version_does_not_do_is_said_where_it_stands():
    found = problems_of(
        MINIMAL
        + "workspace:\n  source: .\n  transfer: mount\nmounts:\n  - source: a\n    target: /a\n    readonly: false\n"
    )
    assert [line.split(": ")[:2] for line in found] == [
        ["p.yaml:6:13", "workspace.transfer"],
        ["p.yaml:10:15", "mounts[0].readonly"],
    ]
    assert all("not supported in this version" in line for line in found)


def test_what_the_owner_refuses_is_placed_at_the_value_itself():
    loaded = load(MINIMAL + "resources:\n  disk: 1GiB\n  vcpus: 64\nmounts:\n  - target: /x\n    source: /etc\n")
    assert [(one.line, one.column) for one in check_policy(loaded, OwnerPolicy(), "/w")] == [(6, 10), (9, 13)]


def test_what_does_not_fit_together_is_placed_in_the_file_that_it_stands_in():
    text = "extends: base\nmounts:\n  - {source: b, target: /a/deep}\n  - {source: c, target: /c}\n"
    [found] = problems_of(text, {"base": MINIMAL + "mounts: [{source: a, target: /a}]\n"})
    assert found.startswith("p.yaml:3:25: mounts[1].target: overlaps with mounts[0]")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("resources: {memory: 4096}", "resources.memory: must be text, not a whole number; quotes make it text"),
        ("gates: unit", "gates: must be a list, not text"), ("workload: make", "workload: must be a mapping, not text"),
        ("resources: {vcpus: true}", "must be a whole number, not true or false"), ("mode: yes", "must be text, not true or false"),
        ("artifacts: {}", "must be a list, not a mapping"), ("workspace: [1]", "must be a mapping, not a list"),
        ("environment: {A: [1]}", "must be text or a whole number or a number or true or false, not a list"),
        ("resources: {vcpus: 1.5}", "must be a whole number, not a number"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_said_in_words_of_yaml(line, words):
    [found] = problems_of(MINIMAL + line + "\n")
    assert words in found


def test_all_errors_at_once_with_places():
    found = problems_of(
        "version: 2\nname: P\nimmage: x\nresources: {vcpus: true, memory: 2GB}\n"
        "egress: {allow: [{ports: [0]}, {host: 10.0.0.1}, {host: a.b, cidr: 1.2.3.0/24}, {host: '*.com'}]}\n"
        "secrets: [{name: x, path: /etc/x, source: {}, mode: '0444'}]\n"
    )
    text = "\n".join(found)
    for words in (
        "p.yaml:1:10: version: 2 is not one of 1", "p.yaml:3:1: immage: unknown key; did you mean image?", "image: is required",
        "p.yaml:4:20: resources.vcpus", "resources.memory: must be a number", "egress.allow[0]: must have one of", "egress.allow[0].ports[0]",
        "egress.allow[1].host", "egress.allow[2].host: cannot be used together", "egress.allow[3].host: must be", "secrets[0].path", "secrets[0].mode", "secrets[0].source",
    ):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize(
    "value",
    ["{{ 7*7 }}", "{% include '/etc/passwd' %}", "${HOME}", "'/><source dir='/etc'/>", "; rm -rf /", "a\\nb", '\\"'],
)
@pytest.mark.parametrize(
    "line",
    ['name: "{}"', 'image: "{}"', 'egress: {{allow: [{{host: "{}"}}]}}', 'gates: ["x\\n{}"]', 'secrets: [{{name: "{}", source: {{env: A}}}}]',
     'mounts: [{{source: x, target: "{}"}}]', 'resources: {{memory: "{}"}}', 'workspace: {{target: "{}"}}', 'environment: {{"{}": x}}'],
)  # fmt: skip
def test_injection_is_refused_where_a_form_is_due(line, value):
    text = "".join(part + "\n" for part in MINIMAL.splitlines() if part.split(":")[0] not in line.split(":")[0])
    assert problems_of(text + line.format(value) + "\n")


def test_extends():
    parent = MINIMAL + "egress: {allow: [{host: a.example.com}]}\nresources: {vcpus: 3, memory: 4GiB}\ngates: [unit]\n"
    child = (
        "extends: base.yaml\nname: child\nversion: 1\nresources: {vcpus: 60}\negress: {allow: [{cidr: 10.0.0.1/32}]}\n"
    )
    loaded = load(child, {"base.yaml": parent})
    assert (
        loaded.profile.resources.vcpus == 60
        and loaded.profile.resources.memory == 4096
        and loaded.profile.gates == ("unit",)
    )
    assert [rule.destination for rule in loaded.profile.egress.allow] == ["a.example.com", "10.0.0.1/32"]
    found = [str(problem) for problem in check_policy(loaded, OwnerPolicy(), "/w")]
    assert found[0].startswith("p.yaml:4:20: resources.vcpus")
    assert "p.yaml:5:" in found[1] and "10.0.0.1:443 is in a reserved range" in found[1]


def test_extends_itself_or_nothing():
    assert "extends itself" in problems_of("extends: p.yaml\n" + MINIMAL, {"p.yaml": "extends: p.yaml\n" + MINIMAL})[0]
    assert "is not there" in problems_of("extends: gone.yaml\n" + MINIMAL)[0]


def test_overlaps():
    found = "\n".join(
        problems_of(
            MINIMAL
            + "workspace: {}\nmounts: [{source: a, target: /workspace/data}, {source: b, target: /x}, {source: c, target: /x}]\n"
            "secrets: [{name: a, source: {env: KTRDR_A}}, {name: a, source: {env: KTRDR_A}}]\ngates: [unit, unit]\n"
        )
    )
    assert "overlaps with the workspace" in found and "mounts[2].target" in found and found.count("occurs twice") == 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("secrets: [{name: a, source: {env: AWS_SECRET_ACCESS_KEY}}]", "variable AWS_SECRET_ACCESS_KEY as a source"),
        ("secrets: [{name: a, source: {file: /root/.ssh/id_rsa}}]", "as a source of secrets"),
        ("secrets: [{name: a, source: {command: [cat, /root/.ssh/id_rsa]}}]", "as a source of secrets"),
        ("egress: {mode: observe}", "observe mode"),
        ("egress: {allow: [{cidr: 192.168.1.0/24}]}", "only single addresses"),
        ("egress: {allow: [{cidr: 169.254.169.254/32, ports: [80]}]}", "169.254.169.254:80"),
        ("egress: {allow: [{cidr: 126.0.0.0/8}]}", ""),
        ("resources: {memory: 900GiB}", "resources.memory"),
        ("mounts: [{source: /etc, target: /x}]", "neither in the workspace"),
        ("mounts: [{source: .git, target: /x}]", ".git is never"),
        ("mounts: [{source: sub/.ssh, target: /x}]", "personal folder or file"),
        ("workspace: {source: /root}", "neither in the workspace"),
    ],
)
def test_owner_policy_bounds_the_profile(line, words):
    found = "\n".join(str(problem) for problem in check_policy(load(MINIMAL + line + "\n"), OwnerPolicy(), "/w"))
    assert (words in found) if words else not found


def test_owner_policy_can_allow():
    policy = parse_policy(
        "mounts: {roots: [/data]}\nsecrets: {env: [CI_TOKEN], files: [/etc/ktrdr-vm/token]}\n"
        "egress: {reserved: ['192.168.1.5:5432'], observe: true}\nresources: {max: {vcpus: 64, memory: 1TiB}}\n"
    )
    loaded = load(
        MINIMAL + "mounts: [{source: /data/x, target: /x}]\nresources: {vcpus: 64, memory: 900GiB}\n"
        "secrets: [{name: a, source: {env: CI_TOKEN}}, {name: b, source: {file: /etc/ktrdr-vm/token}}]\n"
        "egress: {allow: [{cidr: 192.168.1.5/32, ports: [5432]}]}\n"
    )
    assert check_policy(loaded, policy, "/w") == []
    assert "192.168.1.5:22" in str(
        check_policy(load(MINIMAL + "egress: {allow: [{cidr: 192.168.1.5/32, ports: [22]}]}\n"), policy, "/w")[0]
    )


@pytest.mark.parametrize("spelling", ["~/x", "../x", "a/../../x", "$HOME/x", "~root/.ssh"])
def test_mount_spellings_are_refused(spelling):
    assert "literal path" in problems_of(MINIMAL + f"mounts: [{{source: '{spelling}', target: /x}}]\n")[0]


@pytest.mark.parametrize("gate", ["/etc/shadow", "../x.yaml", "~/x.yaml", "$HOME/x"])
def test_a_profiles_gate_is_a_name_or_lies_in_the_workspace(gate):
    assert "gates[0]" in problems_of(MINIMAL + f"gates: ['{gate}']\n")[0]


@pytest.mark.parametrize(
    ("url", "allowed"),
    [("https://cloud.test.org/x", True), ("http://10.0.0.1/x", False), ("file:///etc/shadow", False)],
)
def test_root_fetches_an_image_only_from_where_the_owner_lets_it(url, allowed):
    text = f"version: 1\nname: p\nimage: {{url: '{url}', sha256: {'a' * 64}}}\n"
    found = "\n".join(str(problem) for problem in check_policy(load(text), OwnerPolicy(), "/w"))
    assert ("allows images from https:// (images.sources)" in found) != allowed
    assert check_policy(load(text), OwnerPolicy(image_sources=(url[:12],)), "/w") == []
