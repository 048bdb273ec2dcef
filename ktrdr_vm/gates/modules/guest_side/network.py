# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: PTH116, PTH123, S310
"""`uri` and `wait_for`, which run in the guest, because they test its network."""

import base64
import contextlib
import http.cookiejar
import json
import os
import re
import socket
import ssl
import time
import types
import urllib.error
import urllib.parse
import urllib.request

MAX_CONTENT = 1024 * 1024


def run(arguments):
    action = {"uri": uri, "wait_for": wait_for}[arguments.pop("action")]
    return action(types.SimpleNamespace(**arguments))


class Redirects(urllib.request.HTTPRedirectHandler):
    """`safe` follows GET and HEAD only, `all` everything, `none` nothing. Never to anything but HTTP."""

    def __init__(self, policy):
        self.policy = policy

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        allowed = self.policy in ("all", "yes", "true", "urllib2") or (
            self.policy == "safe" and req.get_method() in ("GET", "HEAD")
        )
        if not allowed or not newurl.startswith(("http://", "https://")):
            return None
        # The standard library refuses 307 and 308 except for GET and HEAD. These two repeat the request unchanged, with
        # its body.
        method, again = req.get_method(), code in (307, 308)
        if not again and method != "HEAD" and (code in (302, 303) or method == "POST"):
            method = "GET"
        sent = {name: value for name, value in req.headers.items() if again or not name.lower().startswith("content-")}
        data = req.data if again else None
        return urllib.request.Request(
            newurl.replace(" ", "%20"),
            data=data,
            headers=sent,
            origin_req_host=req.origin_req_host,
            unverifiable=True,
            method=method,
        )


def uri(asked):
    """One request. `asked` has the parameters of the module, with their defaults."""
    started = time.time()
    headers = {str(name): str(value) for name, value in asked.headers.items()}
    data = None if asked.body is None else encode_body(asked.body, asked.body_format, headers)
    if asked.user is not None:
        headers["Authorization"] = (
            "Basic " + base64.b64encode(("{}:{}".format(asked.user, asked.password or "")).encode()).decode()
        )
    if not asked.url.lower().startswith(("http://", "https://")):
        return {
            "failed": True,
            "status": -1,
            "url": asked.url,
            "msg": "only http and https are supported, not {}".format(asked.url.split(":")[0][:30]),
        }
    context = ssl.create_default_context()
    if not asked.validate_certs:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    cookies = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(
        Redirects(str(asked.follow_redirects).lower()),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPCookieProcessor(cookies),
    )
    result = {"changed": False, "url": asked.url, "status": -1, "redirected": False}
    content = b""
    answer = None
    try:
        request = urllib.request.Request(asked.url, data=data, headers=headers, method=asked.method)
        answer = opener.open(request, timeout=asked.timeout)
        reason = "OK"
    except urllib.error.HTTPError as error:
        answer, reason = error, f"HTTP Error {error.code}: {error.reason}"
    except (OSError, ValueError, urllib.error.URLError) as error:
        reason = f"Request failed: {error}"
    except Exception as error:  # http.client raises other classes for an invalid response
        reason = f"Request failed: {type(error).__name__}: {error}"
    if answer is not None:
        read_head(answer, cookies, result)
        content, problem = read_content(answer, started + asked.timeout)
        if problem:
            reason, result["status"] = problem, -1
    text = decode(content[:MAX_CONTENT], answer)
    result["elapsed"] = int(time.time() - started)
    result["msg"] = f"{reason} ({len(content)} bytes)" if reason == "OK" else reason
    if "json" in str(result.get("content_type", "")):
        with contextlib.suppress(ValueError, RecursionError):
            result["json"] = json.loads(text)
    failed = result["status"] not in asked.status_code
    if asked.return_content or failed:
        result["content"] = text
    if len(content) > MAX_CONTENT and (asked.return_content or failed or "json" in str(result.get("content_type", ""))):
        result["truncated"] = True
    if failed:
        result["failed"] = True
        result["msg"] = "Status code was {} and not {}: {}".format(result["status"], asked.status_code, result["msg"])
    return result


def encode_body(body, body_format, headers):
    """The body of the request. The content type of the format is added to `headers` if they have none."""
    content_type = {"json": "application/json", "form-urlencoded": "application/x-www-form-urlencoded"}.get(body_format)
    if content_type and not any(name.lower() == "content-type" for name in headers):
        headers["Content-Type"] = content_type
    if isinstance(body, str):
        return body.encode()
    return (urllib.parse.urlencode(body, doseq=True) if body_format == "form-urlencoded" else json.dumps(body)).encode()


def read_head(answer, cookies, result):
    """Status, final URL, cookies and headers, with the keys of Ansible."""
    result["cookies"] = {cookie.name: cookie.value for cookie in cookies}
    result["cookies_string"] = "; ".join(f"{name}={value}" for name, value in result["cookies"].items())
    result["status"] = answer.getcode()
    result["redirected"] = answer.geturl() != result["url"]
    result["url"] = answer.geturl()
    for name, value in answer.headers.items():
        if name.lower() not in ("failed", "skipped", "json", "content", "msg", "elapsed", "truncated"):
            result.setdefault(name.lower().replace("-", "_"), value)


def read_content(answer, until):
    """At most one byte more than the limit, so that a cut is detected, and the reason if reading failed."""
    content = b""
    try:
        while len(content) <= MAX_CONTENT and time.time() < until:
            piece = answer.read(65536)
            if not piece:
                break
            content += piece
    except Exception as error:
        return content, f"reading the answer failed: {error}"
    return content, ""


def decode(content, answer):
    charset = answer.headers.get_content_charset() if answer is not None else None
    try:
        return content.decode(charset or "utf-8", "replace")
    except LookupError:
        return content.decode("utf-8", "replace")


def wait_for(asked):
    """Wait for a port or a path. `asked` has the parameters of the module, with their defaults."""
    started = time.time()
    pattern = re.compile(asked.search_regex.encode(), re.MULTILINE) if asked.search_regex else None
    result = {
        "changed": False,
        "state": asked.state,
        "port": asked.port,
        "path": asked.path,
        "search_regex": asked.search_regex,
    }
    time.sleep(min(asked.delay, asked.timeout))
    if asked.port is None and asked.path is None:
        time.sleep(max(0, asked.timeout - asked.delay))
        result["elapsed"] = int(time.time() - started)
        return result
    present = asked.state in ("started", "present")
    while True:
        groups = there(
            asked.host,
            asked.port,
            asked.path,
            asked.connect_timeout,
            pattern,
            max(0.1, started + asked.timeout - time.time()),
        )
        if (groups is not None) == present:
            result["elapsed"] = int(time.time() - started)
            result["match_groups"], result["match_groupdict"] = groups or ([], {})
            return result
        if time.time() >= started + asked.timeout:
            break
        time.sleep(min(asked.sleep, max(0, started + asked.timeout - time.time())))
    what = asked.path if asked.path is not None else f"{asked.host}:{asked.port}"
    said = "Timeout when waiting for {}{}".format(
        f"search string {asked.search_regex} in " if asked.search_regex else "", what
    )
    if not present:
        said = (
            f"Timeout when waiting for {what} to stop."
            if asked.path is None
            else f"Timeout when waiting for {what} to be absent."
        )
    result.update(failed=True, msg=asked.msg or said, elapsed=int(time.time() - started))
    return result


def there(host, port, path, connect_timeout, pattern, left):
    """The groups of the match if the condition is met, else None."""
    try:
        if path is not None:
            if pattern is None:
                os.stat(path)
                return [], {}
            with open(path, "rb") as stream:
                return found(pattern, stream.read(16 * MAX_CONTENT))
        with socket.create_connection((host, port), min(connect_timeout, left)) as connection:
            if pattern is None:
                return [], {}
            data, end = b"", time.time() + min(connect_timeout, left)
            while len(data) < MAX_CONTENT and time.time() < end:
                connection.settimeout(max(0.05, end - time.time()))
                piece = connection.recv(4096)
                if not piece:
                    break
                data += piece
                groups = found(pattern, data)
                if groups is not None:
                    return groups
            return None
    except OSError:
        return None


def found(pattern, data):
    match = pattern.search(data)
    if match is None:
        return None
    show = lambda value: None if value is None else value.decode("utf-8", "replace")  # noqa: E731
    return [show(group) for group in match.groups()], {name: show(value) for name, value in match.groupdict().items()}
