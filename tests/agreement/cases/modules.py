"""Cases of modules, on files in the folder `place` of each runner. Some depend on those before them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.agreement.cases.model import Case

_CONTENTS = {
    "empty": "",
    "one": "one\n",
    "open": "one\ntwo",
    "many": "alpha=1\n# beta\nbeta=2\n\nbeta=3\nend\n",
    "crlf": "a\r\nb\r\n",
}
_LINES: tuple[dict[str, Any], ...] = (
    {"line": "one"}, {"line": "new"}, {"line": "two"}, {"line": "beta=9", "regexp": "^beta="}, {"line": "beta=9", "regexp": "^beta=", "firstmatch": True},
    {"line": "new", "insertafter": "^alpha"}, {"line": "new", "insertbefore": "^beta"}, {"line": "new", "insertbefore": "^beta", "firstmatch": True},
    {"line": "new", "insertafter": "BOF"}, {"line": "new", "insertbefore": "BOF"}, {"line": "new", "insertafter": "EOF"}, {"line": "new", "insertafter": "nope"},
    {"line": "\\1=0", "regexp": "^(\\w+)=3", "backrefs": True}, {"line": "\\1=0", "regexp": "^(nope)", "backrefs": True},
    {"line": "found", "search_string": "beta"}, {"line": "found", "search_string": "nope"}, {"line": "new", "regexp": "nope", "insertafter": "^one"},
    {"line": "new", "regexp": "nope", "insertbefore": "^one"}, {"state": "absent", "regexp": "beta"}, {"state": "absent", "line": "one"},
    {"state": "absent", "search_string": "t"}, {"state": "absent"}, {}, {"line": "x", "regexp": "(", }, {"line": "", "regexp": "^one"}, {"line": "two\nlines"},
    {"line": "x", "insertafter": "a", "insertbefore": "b"}, {"line": "x", "regexp": "a", "search_string": "b"}, {"line": "one", "regexp": "^two"},
    {"line": "x", "backrefs": True}, {"line": "ü"}, {"line": 5}, {"line": True}, {"line": "x", "mode": "0600"}, {"line": "x", "state": "gone"},
)  # fmt: skip
_REPLACES: tuple[dict[str, Any], ...] = (
    {"regexp": "beta", "replace": "gamma"}, {"regexp": "^(\\w+)=(\\d)$", "replace": "\\2=\\1"}, {"regexp": "nope"}, {"regexp": "a"}, {"regexp": "("},
    {"regexp": "=", "replace": ":", "after": "# beta"}, {"regexp": "=", "replace": ":", "before": "# beta"}, {"regexp": "=", "after": "nope"},
    {"regexp": "=", "replace": ":", "after": "alpha", "before": "end"}, {"regexp": "x", "replace": "\\9"}, {"regexp": "\\n\\n", "replace": "\n"}, {},
)  # fmt: skip
_FINDS: tuple[dict[str, Any], ...] = (
    {}, {"patterns": "*.txt"}, {"patterns": ["a*", "b*"]}, {"recurse": True}, {"recurse": True, "patterns": "*.txt", "excludes": "b*"}, {"hidden": True},
    {"file_type": "directory"}, {"file_type": "any", "recurse": True}, {"file_type": "link"}, {"recurse": True, "depth": 1}, {"recurse": True, "depth": 2},
    {"contains": "one"}, {"contains": ".*two"}, {"contains": "two"}, {"size": "1k"}, {"size": "-1k"}, {"size": "x"}, {"age": "1h"}, {"age": "-1h"}, {"age": "soon"},
    {"use_regex": True, "patterns": "^a.*"}, {"limit": 1}, {"limit": 0}, {"excludes": "*.txt"}, {"patterns": "a.txt,b.txt"}, {"file_type": "pipe"},
    {"get_checksum": True, "patterns": "a.txt"}, {"get_checksum": True, "checksum_algorithm": "sha256", "patterns": "a.txt"},
)  # fmt: skip
_FILES: tuple[dict[str, Any], ...] = (
    {"state": "directory", "path": "f/d"}, {"state": "directory", "path": "f/d", "mode": "u=rwx,go="}, {"state": "touch", "path": "f/t"}, {"path": "f/t", "mode": "0600"},
    {"path": "f/t", "mode": "u+x"}, {"path": "f/t", "mode": 384}, {"path": "f/t", "mode": "0644", "state": "file"}, {"path": "f/t", "state": "directory"},
    {"path": "f/d", "state": "file"}, {"src": "t", "path": "f/l", "state": "link"}, {"src": "t", "path": "f/l", "state": "link"}, {"src": "nope", "path": "f/l2", "state": "link"},
    {"src": "nope", "path": "f/l2", "state": "link", "force": True}, {"path": "f/l", "state": "absent"}, {"path": "f/nope", "state": "file"}, {"path": "f/nope"},
    {"path": "f/nope", "state": "absent"}, {"path": "f/d", "state": "directory", "recurse": True, "mode": "0700"}, {"path": "f/t", "state": "absent"}, {"path": "f/t", "state": "gone"},
    {"path": "f/t", "owner": "root", "state": "touch"}, {"path": "f/t", "owner": "nobody-here"}, {"path": "f/t", "mode": "rwx"}, {"path": "f/e", "state": "touch", "mode": "0640"},
    {"path": "f/e", "mode": "o=g"}, {"path": "f/e", "mode": "1777"}, {"path": "f/e", "mode": "preserve"},
)  # fmt: skip
_COPIES: tuple[dict[str, Any], ...] = (
    {"content": "a", "dest": "c"}, {"content": "a", "dest": "c"}, {"content": "b", "dest": "c", "mode": "0600"}, {"content": "", "dest": "c"}, {"content": {"a": 1}, "dest": "c"},
    {"content": [1, "x"], "dest": "c"}, {"content": "ü✓", "dest": "c"}, {"content": 5, "dest": "c"}, {"content": True, "dest": "c"}, {"content": "x", "dest": "no/such/c"},
    {"content": "x", "dest": "c/"}, {"content": "z", "dest": "c", "force": False}, {"content": "z", "dest": "c2", "force": False}, {"content": "{{ [1, 2] | to_json }}", "dest": "c"},
    {"content": "{{ {'b': 1, 'a': 2} }}", "dest": "c"}, {"content": "{{ none }}", "dest": "c"}, {"content": "1.0", "dest": "c"},
)  # fmt: skip
_COMMANDS: tuple[dict[str, Any], ...] = (
    {"shell": "echo a; echo b >&2"}, {"shell": "exit 3"}, {"shell": "printf 'a\\n\\n'"}, {"shell": "printf 'a\\r\\n'"}, {"shell": "echo $0"}, {"shell": "true", "args": {"creates": "/etc"}},
    {"command": "echo {{ 'a b' | quote }}"}, {"command": "echo 'a b' c"}, {"command": {"argv": ["printf", "%s|", "a b", "", "$HOME"]}}, {"command": "nosuchprogram x"}, {"command": ""},
    {"command": "echo $NOPE ${NOPE} '$NOPE'"}, {"command": {"argv": ["echo", 5, True, None]}}, {"command": {"cmd": "cat", "stdin": "x"}}, {"command": "cat", "args": {"stdin": "x", "stdin_add_newline": False}},
    {"command": "false", "args": {"removes": "/nope"}}, {"command": "pwd", "args": {"chdir": "/"}}, {"command": "pwd", "args": {"chdir": "/nope"}}, {"shell": "echo 'ü✓'"},
    {"shell": "echo {{ missing }}"}, {"shell": "echo a=b c"}, {"command": "echo creates=/nope x"}, {"shell": "printf ''"}, {"shell": "echo '{{ \"{{\" }} 7 }}'"},
    {"shell": "echo \"a\\tb\""}, {"command": "echo ~"}, {"command": "echo a | cat"}, {"command": {"cmd": "echo x", "strip_empty_ends": False}}, {"shell": {"cmd": "echo x", "executable": "/bin/bash"}},
)  # fmt: skip
_OTHERS: tuple[tuple[dict[str, Any], tuple[str, ...]], ...] = (
    ({"debug": {"var": "missing"}}, ()), ({"debug": {"var": "nested"}}, ("nested",)), ({"debug": {"var": "result.rc"}}, ("result.rc",)), ({"debug": {}}, ("msg",)),
    ({"debug": {"msg": "x", "verbosity": 2}}, ("msg",)), ({"debug": {"msg": ["a", {"b": "{{ 1 }}"}]}}, ("msg",)), ({"fail": {"msg": "no"}}, ()), ({"fail": {}}, ()),
    ({"assert": {"that": "1 == 1"}}, ("msg",)), ({"assert": {"that": ["1 == 1", "1 == 2"]}}, ()), ({"assert": {"that": "1 == 1", "success_msg": "fine"}}, ("msg",)),
    ({"assert": {"that": True}}, ("msg",)), ({"assert": {"that": []}}, ()), ({"assert": {"that": "missing"}}, ()), ({"set_fact": {"one": 1, "two": "{{ [1] }}"}}, ("ansible_facts",)),
    ({"set_fact": {"three": "{{ one + 1 }}"}}, ("ansible_facts",)), ({"set_fact": {}}, ()), ({"set_fact": {"b": "yes", "n": "007"}}, ("ansible_facts",)), ({"pause": {"seconds": 0}}, ()),
    ({"slurp": {"src": "/nope"}}, ()), ({"slurp": {"src": "/etc"}}, ()), ({"slurp": {"src": "{{ place }}/page.json"}}, ("content", "encoding")),
    ({"stat": {"path": "/etc/passwd"}}, ("changed",)), ({"stat": {"path": "/nope"}}, ("stat",)), ({"command": "true", "changed_when": "missing"}, ()),
    ({"command": "true", "failed_when": "1 == 1"}, ("failed_when_result",)), ({"command": "true", "failed_when": [True, False]}, ("failed_when_result",)),
    ({"command": "true", "changed_when": ["1 == 1", "1 == 2"]}, ("changed",)), ({"debug": {"msg": "{{ item }}"}, "loop": [1, "a", None, [2], {"b": 3}]}, ("results",)),
    ({"debug": {"msg": "{{ item }}"}, "with_items": [1, [2, [3]], "x"]}, ("results",)), ({"debug": {"msg": "{{ item }}"}, "with_items": "{{ users | map(attribute='name') }}"}, ("results",)),
    ({"debug": {"msg": "{{ item.key }}={{ item.value.port }}"}, "with_dict": "{{ services }}"}, ("results",)), ({"debug": {"msg": "{{ item }}"}, "loop": "{{ missing }}"}, ()),
    ({"debug": {"msg": "{{ item }}"}, "loop": "{{ 'abc' }}"}, ()), ({"debug": {"msg": "{{ item }}"}, "loop": []}, ("results",)), ({"debug": {"msg": "{{ item }}"}, "with_items": []}, ("results",)),
    ({"debug": {"msg": "{{ n }} {{ i }}"}, "loop": ["a", "b"], "loop_control": {"loop_var": "n", "index_var": "i", "label": "{{ n }}"}}, ("results",)),
    ({"debug": {"msg": "{{ item }}"}, "loop": [1, 2, 3], "when": "item > 1"}, ("results", "changed")), ({"debug": {"msg": "{{ item }}"}, "loop": [1, 2], "when": "false"}, ()),
    ({"command": "test {{ item }} -eq 1", "loop": [1, 2]}, ()), ({"debug": {"msg": "{{ item }}"}, "with_list": [[1, 2], 3]}, ("results",)), ({"debug": {"msg": "{{ v }}"}, "vars": {"v": "{{ 1 + 1 }}"}}, ("msg",)),
    ({"shell": "echo $A $B", "environment": {"A": 1, "B": "{{ 'x' }}"}}, ("stdout",)), ({"shell": "echo $A", "environment": [{"A": "1"}, {"A": "2"}]}, ("stdout",)), ({"command": "false", "ignore_errors": "{{ 1 == 1 }}"}, ()),
    ({"debug": {"msg": "{{ ansible_check_mode }}"}}, ("msg",)), ({"command": "echo secret", "no_log": True}, ()), ({"debug": {"msg": "once"}, "run_once": True}, ("msg",)),
    ({"debug": {"msg": "{{ playbook_dir is directory }}"}}, ("msg",)), ({"debug": {"msg": "{{ (playbook_dir ~ '/nope') is file }}"}}, ("msg",)), ({"debug": {"msg": "{{ lookup('env', 'KTRDR_NOPE') }}"}}, ("msg",)),
    ({"command": "true", "retries": "{{ missing }}"}, ()), ({"shell": "echo $A $B $C", "environment": {"A": True, "B": None, "C": 1.0}}, ("stdout", "msg")),
    ({"debug": {"msg": "{{ item.key }}"}, "with_dict": [{"a": 1}, {"b": 2}]}, ("results",)), ({"debug": {"msg": "a", "var": "b"}}, ()), ({"assert": {"that": "1 == 2", "fail_msg": ["a"]}}, ()),
    ({"debug": {"msg": "{{ item }}"}, "loop": ["{{ missing | default(omit) }}", "a"]}, ("results",)), ({"shell": "echo $A", "environment": {"A": "{{ missing | default(omit) }}"}}, ("stdout",)),
    ({"debug": {"msg": "{{ lookup('env', 'KTRDR_NOPE', default='d') }}"}}, ("msg",)), ({"debug": {"msg": "{{ query('env', 'KTRDR_NOPE') }}"}}, ("msg",)), ({"meta": "noop"}, ()),
)  # fmt: skip


def _list(*values: Any) -> tuple[Any, ...]:
    return values


_ODD: tuple[tuple[dict[str, Any], tuple[str, ...]], ...] = (
    *(({module: text}, ("stdout", "rc")) for module in ("command", "shell") for text in (
        "cat stdin=abc", "cat stdin='a b'", "cat stdin=abc stdin_add_newline=no", "pwd chdir=/", "chdir=/ pwd", "echo a chdir=/ b", "echo chdir='/ x'", "true creates=/etc", "true removes=/nope",
        "echo executable=/bin/bash", "echo warn=no", "echo argv=x", "echo cmd=x", "echo a=b", "echo 'chdir=/'", "echo \"chdir=/\"", "echo strip_empty_ends=no", "echo expand_argument_vars=no",
        "echo _raw_params=x", "echo _uses_shell=yes", "echo creates=", "echo x chdir={{ '/' }}", "echo stdin={{ 'a b' }}", "cat stdin={{ 5 }}", "echo \\chdir=/", "echo a  b", "echo 'a  b'", " echo a ",
    )),
    *(({"assert": {"that": that}}, ()) for that in (
        "{{ 1 == 1 }}", "'{{ 1 }}' == '1'", ["{{ true }}"], "{{ [] }}", "{{ ['1 == 1'] }}", "a is {{ 'defined' }}", "{{ '1 == 1' }}", "'{' in '{}'", "{'a': 1} == {'a': 1}", "{{}} == {}", 1, 0, "yes",
        "'yes'", None, "", [None], [""], {"a": 1}, [["1 == 1"]], "1 == 1 and", "'{% x %}' != ''", "'{#' != ''", 1.0, "1", "none", "[]", "omit", "{{ omit }}", "1 == 1 # no", "true", "True", "'a' in 'abc'",
    )),
    *(({"command": "true", key: value}, ("changed", "failed_when_result")) for key in ("failed_when", "changed_when", "until", "when") for value in (
        True, False, "true", "no", "", [], [True], ["1 == 1", False], None, 0, 1, "0", "{{ true }}", "{{ 'no' }}", "none", "[]", {"a": 1}, "missing", "missing is defined", ["missing is defined", "missing"],
        "'a'", "1", "omit", "{{ missing }}", "1 == 1 and true", [["1 == 1"]], 1.5,
    ) if key != "until" or value in (True, "true", [True], "missing is not defined")),
    *(({"command": command, "until": until, "retries": retries, "delay": 0, "register": "u", **more}, ("attempts", "changed", "failed_when_result", "rc"))
      for command in ("true", "false") for until in ("1 == 1", "1 == 2", "u.rc == 0", "missing", ["u is succeeded", "u is changed"])
      for retries in (1, "{{ 0 }}") for more in ({}, {"failed_when": True}, {"failed_when": False}, {"failed_when": "u.rc == 0"}, {"changed_when": False}, {"failed_when": "missing"})),
    *(({"debug": {"msg": "{{ item }}"}, key: value}, ("results",)) for key in ("loop", "with_items", "with_list", "with_dict") for value in _list(
        {"a": 1}, "{{ {'a': 1} }}", "abc", "{{ 'abc' }}", 5, "{{ 5 }}", "{{ none }}", "", [], {}, "{{ [] }}", "{{ {} }}", [None], [[]], ["{{ [1, 2] }}"], ["{{ omit }}"], "{{ omit }}", "{{ [1] }}{{ [2] }}",
        "{{ missing }}", ["{{ missing }}"], "{{ (1, 2) }}", "{{ range(2) }}", "{{ 'ab' | list }}", [True, 1.5, {"b": [1]}], "{{ {'a': 1}.items() }}", "{{ {'a': 1} | dict2items }}",
    )),
    *(({"debug": {"msg": "x"}, "loop": [1, 2], "loop_control": control}, ("results",)) for control in (
        {"label": "{{ missing }}"}, {"label": "{{ item }}"}, {"label": 5}, {"label": None}, {"pause": 0}, {"pause": "{{ 0 }}"}, {"pause": "x"}, {"loop_var": "a"}, {"index_var": "a"}, {}, None,
    )),
    *(({"shell": "echo \"$A|$B\"", "environment": value}, ("stdout",)) for value in (
        {"A": 5, "B": -1.50}, {"A": [1], "B": {"c": 1}}, {"A": "{{ 5 }}", "B": "{{ [1] }}"}, {"A": "", "B": "a b"}, {"A": 1e3, "B": False}, {"A": "{{ none }}"}, {"A": "{{ missing }}"}, {"A": "$HOME"}, {"A": "ü'\""},
        {"A": "a\nb"}, "{{ {'A': 1} }}", "{{ missing }}", [{"A": 1}, {"B": "{{ 2 }}"}], ["{{ {'A': 3} }}"],
    )),
    *(({"pause": options}, ()) for options in ({"seconds": "0"}, {"seconds": "x"}, {"minutes": 0}, {"seconds": -1}, {"seconds": 0.2}, {"seconds": "{{ 0 }}"}, {"prompt": "a", "seconds": 0})),
    *(({"fail": options}, ()) for options in ({"msg": 5}, {"msg": ["a"]}, {"msg": None}, {"msg": "{{ missing }}"}, None, "x")),
    *(({"stat": {"path": value, **more}}, ("changed",)) for value in ("/etc", 5, "", None, ["/etc"], "{{ omit }}", "~", "/nope/x") for more in ({}, {"follow": "yes"}, {"get_checksum": "maybe"}, {"checksum_algorithm": "x"})),
    *(({"slurp": {"src": value}}, ("encoding",)) for value in ("", None, 5, ["/etc/hostname"], "{{ place }}/page.json")),
    *(({"wait_for": options}, ()) for options in (
        {"path": "/etc"}, {"path": "/nope", "timeout": 1}, {"timeout": 0}, {"path": "/nope", "state": "absent"}, {"path": "/etc", "state": "absent", "timeout": 1}, {"port": "x"}, {"path": "/etc", "port": 1}, {"port": 9, "timeout": "1"},
        {"path": "/etc/passwd", "search_regex": "root"}, {"path": "/etc/passwd", "search_regex": "("}, {"path": "/etc", "timeout": "x"}, {"path": "/etc", "state": "gone"}, {"path": "", "timeout": 1}, {"path": "/etc", "sleep": 0},
    )),
    *(({"uri": options}, ()) for options in ({"url": "nope"}, {"url": ""}, {"url": None}, {"url": "ftp://127.0.0.1:9/"}, {"url": "http://127.0.0.1:9/", "timeout": "x"}, {"url": "http://127.0.0.1:9/", "status_code": "x"})),
    *(({"file": {"path": "{{ place }}/modes", "state": "touch", "mode": mode}}, ("mode",)) for mode in _list(
        "0644", "644", 420, 0o600, 644, "u=rw,g=r,o=", "a+x", "", None, "u", "+x", "-w", "8", "0o644", "u=rwX", "u+s", "g=u", 1.5, True, [], "01777", "{{ '0600' }}", "{{ 384 }}", "u=rw g=r", "=", "a=", "u=,g=,o=r",
    )),
    *(({"copy": {"dest": "{{ place }}/odd", **options}}, ("changed",)) for options in (
        {"content": None}, {"content": "a", "force": "no"}, {"content": "a", "force": "maybe"}, {"content": "a", "backup": "no"}, {"content": "a", "mode": 384}, {"content": "a", "mode": ""}, {"content": "a", "src": "b"}, {}, {"src": ""},
        {"content": "a", "follow": 1}, {"content": 1.50}, {"content": [None]}, {"content": "{{ omit }}"}, {"content": "a", "owner": 0}, {"content": "a", "owner": ""}, {"content": "a", "group": "0"},
    )),
)  # fmt: skip

_LINKS: tuple[dict[str, Any], ...] = (
    *({"file": {"path": f"{{{{ place }}}}/w/{name}", **options}} for name in ("l", "ld", "f") for options in (
        {"mode": "0600"}, {"mode": "0600", "follow": False}, {"state": "touch"}, {"state": "absent"},
        {"state": "directory" if name == "ld" else "file", "mode": "0700"}, {"state": "directory" if name == "ld" else "file", "follow": False},
    )),
    *({"copy": {"content": "x\n", "dest": f"{{{{ place }}}}/w/{name}", **options}} for name in ("l", "d", "f") for options in (
        {}, {"follow": True}, {"mode": "0600"}, {"force": False},
    )),
    {"copy": {"src": "{{ place }}/w/f", "dest": "{{ place }}/w/l", "remote_src": True}}, {"lineinfile": {"path": "{{ place }}/w/l", "line": "new"}},
    {"replace": {"path": "{{ place }}/w/l", "regexp": "x", "replace": "y"}},
)  # fmt: skip


_TREES: tuple[dict[str, Any], ...] = (
    *({"copy": {"src": f"{{{{ place }}}}/w/{src}", "dest": f"{{{{ place }}}}/w/{dest}", "remote_src": True, **options}}
      for src in ("from", "from/") for dest in ("new", "new/", "to", "to/", "f", "no/such", "no/such/") for options in ({}, {"force": False})),
    {"copy": {"src": "{{ place }}/w/from", "dest": "{{ place }}/w/to", "remote_src": True, "mode": "0700"}},
    {"copy": {"src": "{{ place }}/w/from/", "dest": "{{ place }}/w/to", "remote_src": True, "mode": "preserve"}},
    {"copy": {"src": "{{ place }}/w/from", "dest": "{{ place }}/w/new/", "remote_src": True, "directory_mode": "0750"}},
    {"copy": {"src": "{{ place }}/w/nope/", "dest": "{{ place }}/w/new", "remote_src": True}},
    *({"file": {"path": "{{ place }}/w/to", **options}} for options in (
        {"recurse": True, "mode": "0700"}, {"recurse": True, "state": "file"}, {"src": "f", "state": "directory"}, {"src": "f"},
    )),
    {"file": {"path": "{{ place }}/w/new", "recurse": True}}, {"file": {"path": "{{ place }}/w/f", "recurse": True}},
)  # fmt: skip


def make_module_cases() -> Iterator[Case]:
    """In the order in which they must run."""
    yield from _make_edits()
    for options in _FINDS:
        yield Case(
            f"find {options}", {"find": {"paths": "{{ place }}/tree", **options}}, ("matched", "examined", "changed")
        )
    yield Case("find in two folders", {"find": {"paths": ["{{ place }}/tree", "/nope"]}}, ("matched", "msg"))
    for options in _FILES:
        named = {"path": f"{{{{ place }}}}/{options['path']}"}
        keys: tuple[str, ...] = ("changed",) if "src" in options else ("changed", "state", "mode")
        yield Case(f"file {options}", {"file": {**options, **named}}, keys)
    for options in _COPIES:
        named = {"dest": f"{{{{ place }}}}/{options['dest']}"}
        yield Case(
            f"copy {options}",
            {"copy": {**options, **named}},
            ("changed",) if "force" in options else ("changed", "checksum", "size", "mode"),
        )
    yield Case("what was copied", {"shell": "cat {{ place }}/c {{ place }}/c2"}, ("stdout",))
    yield from _make_links()
    yield from _make_trees()
    for options in _COMMANDS:
        yield Case(str(options), options, ("changed", "rc", "stdout", "stderr", "stdout_lines", "stderr_lines", "cmd"))
    yield from _make_started()
    for task, keys in _OTHERS:
        yield Case(str(task), task, keys)


def make_odd_cases() -> Iterator[Case]:
    """Values of types that the keyword or the option is not made for. Those that are refused here are not run there:
    ansible-core would refuse the whole playbook."""
    for task, keys in _ODD:
        yield Case(str(task), task, keys)


def _make_started() -> Iterator[Case]:
    """Programs that cannot be started, and those that say the same of themselves."""
    make = (
        "rm -rf w; mkdir -p w/dir; cd w; echo x > plain; printf '#!/nope/x\\n' > lost; printf '#!/bin/sh\\nexit 126\\n' > own;"
        " printf '#!/bin/sh\\nexit 127\\n' > other; printf '#! /bin/sh -e\\necho $1\\n' > good; chmod +x lost own other good"
    )
    yield Case("programs", {"shell": make, "args": {"chdir": "{{ place }}"}})
    for name in ("plain", "dir", "lost", "own", "other", "good", "nope"):
        for called in (f"./{name}", f"{{{{ place }}}}/w/{name}"):
            task = {"command": {"argv": [called, "a b"], "chdir": "{{ place }}/w"}}
            yield Case(f"{called} is started", task, ("changed", "rc", "stdout"))


def _make_links() -> Iterator[Case]:
    """Each in a new folder with a file, a folder, and links to them and to nothing, which is shown afterwards."""
    make = "rm -rf w; mkdir w; cd w; echo x > f; mkdir dir; ln -s f l; ln -s nope d; ln -s dir ld"
    show = "for i in *; do stat -c '%a %F %N' $i; cat $i 2>/dev/null; done"
    for number, task in enumerate(_LINKS):
        yield Case(f"links {number}", {"shell": make, "args": {"chdir": "{{ place }}"}})
        yield Case(str(task), task, ("changed",))
        yield Case(f"the links after {task}", {"shell": show, "args": {"chdir": "{{ place }}/w"}}, ("stdout_lines",))


def _make_trees() -> Iterator[Case]:
    """Folders of the guest, copied and changed: each in a new folder, which is shown afterwards."""
    make = (
        "rm -rf w; mkdir -p w/from/sub/low w/to/from/sub; cd w; umask 022; echo a > from/a; echo b > from/sub/b; chmod 750 from/sub/b;"
        " echo x > f; echo old > to/from/a; echo kept > to/from/kept; echo c > from/sub/low/c"
    )
    show = "find . -mindepth 1 -printf '%p %m %y %l\\n' | sort; cat $(find . -type f | sort)"
    for number, task in enumerate(_TREES):
        yield Case(f"trees {number}", {"shell": make, "args": {"chdir": "{{ place }}"}})
        yield Case(str(task), task, ("changed",))
        yield Case(f"the trees after {task}", {"shell": show, "args": {"chdir": "{{ place }}/w"}}, ("stdout_lines",))


def _make_edits() -> Iterator[Case]:
    """One file for each edit, all made in front, and all shown at the end."""
    edits: list[tuple[str, dict[str, Any]]] = []
    others = [name for name in _CONTENTS if name != "many"]
    for kind, options in (*(("lineinfile", one) for one in _LINES), *(("replace", one) for one in _REPLACES)):
        for name in ("many", others[len(edits) // 2 % len(others)]):
            edits.append((f"{kind}-{len(edits)}-{name}", {kind: options}))
    made = "; ".join(f"printf '{_CONTENTS[name.rsplit('-', 1)[1]]!r}' > {name}".replace("''", "'") for name, _ in edits)
    tree = "mkdir -p tree/sub/low f; cd tree; echo one > a.txt; echo two > b.txt; head -c 3000 /dev/zero > sub/big.bin; ln -s a.txt l; touch .hidden sub/low/c.txt"
    yield Case("the files", {"shell": f"{made}; {tree}", "args": {"chdir": "{{ place }}"}}, ())
    for name, task in edits:
        ((kind, options),) = task.items()
        keys: tuple[str, ...] = ("changed", "msg", "found") if kind == "lineinfile" else ("changed", "msg", "rc")
        yield Case(f"{name} {options}", {kind: {"path": f"{{{{ place }}}}/{name}", **options}}, keys)
    for options in (
        {"line": "x"},
        {"line": "x", "create": True},
        {"line": "x", "create": True},
        {"state": "absent", "line": "x"},
    ):
        yield Case(
            f"lineinfile {options}, no file", {"lineinfile": {"path": "{{ place }}/none", **options}}, ("changed",)
        )
    yield Case("replace, no file", {"replace": {"path": "{{ place }}/nope", "regexp": "a"}}, ())
    yield Case("lineinfile, a folder", {"lineinfile": {"path": "{{ place }}", "line": "a"}}, ())
    show = 'for f in lineinfile-* replace-* none; do echo "== $f"; cat -A $f; done'
    yield Case("the files afterwards", {"shell": show, "args": {"chdir": "{{ place }}"}}, ("stdout_lines",))
