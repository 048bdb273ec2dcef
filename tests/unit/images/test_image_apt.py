"""Which archive of the host's apt is Debian's, and what is passed on from its configuration."""

from ktrdr_vm.images.apt import AptSource, parse_proxy, parse_targets


def no_file(name: str) -> str:
    raise AssertionError(f"{name} was read")


def line(uri: str, release: str = "bookworm", component: str = "main", origin: str = "Debian") -> str:
    return "\t".join((uri, release, component, origin))


def test_the_debian_archive_is_found_among_others() -> None:
    main, security = parse_targets(
        [
            line("https://vendor.example/apt/", origin="Vendor"),
            line("http://mirror.example/debian/", "bookworm-updates"),
            line("http://mirror.example/debian/", component="contrib"),
            line("http://other.example/debian-security/", "bookworm-security"),
            line("http://mirror.example/debian/"),
        ],
        no_file,
    )
    assert main == AptSource("http://mirror.example/debian", False)
    assert security == AptSource("http://other.example/debian-security", True)


def test_before_the_first_update_the_path_tells() -> None:
    unknown = "$(ORIGIN)"
    main, security = parse_targets(
        [line("https://vendor.example/stable", origin=unknown), line("http://mirror.example/debian", origin=unknown)],
        no_file,
    )
    assert main == AptSource("http://mirror.example/debian", False)
    assert security is None


def test_a_mirror_list_stands_for_its_first_mirror() -> None:
    lists = {"/etc/apt/mirrors/debian.list": "# ours\nhttps://a.example/debian\tpriority:1\nhttps://b.example/debian\n"}
    main, _ = parse_targets([line("mirror+file:/etc/apt/mirrors/debian.list/")], lambda name: lists[name])
    assert main == AptSource("https://a.example/debian", False)


def test_what_is_not_a_network_archive_of_debian_is_nothing() -> None:
    assert parse_targets(
        [
            line("cdrom:[Debian]/"),
            line("file:/srv/debian"),
            line("http://a.example/ubuntu", origin="Ubuntu"),
            "nonsense",
        ],
        no_file,
    ) == (None, None)


def test_a_password_of_the_mirror_is_not_shown() -> None:
    assert (
        AptSource("https://me:secret@mirror.example:8443/debian", False).public_uri
        == "https://mirror.example:8443/debian"
    )


def test_proxies_and_certificates_are_passed_on_and_nothing_else() -> None:
    dump = [
        'Acquire::http::Proxy "http://proxy.example:3142";',
        'Acquire::http::Proxy::mirror.example "DIRECT";',
        'Acquire::https::CAInfo "/etc/ssl/ours.pem";',
        'Acquire::http "";',
        'DPkg::Post-Invoke:: "rm -rf /";',
    ]
    assert parse_proxy(dump) == tuple(dump[:3])
