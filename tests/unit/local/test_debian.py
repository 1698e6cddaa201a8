"""Which mirror, key and suite the Debian recipe uses, from both formats of apt's sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from brokerkit.local.contract import Unavailable
from brokerkit.local.debian import Source, archive, sources

DEB822 = """
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""
INLINE = """Types: deb
URIs: https://other.example/debian
Suites: trixie
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBGA
 -----END PGP PUBLIC KEY BLOCK-----
"""


def machine(
    folder: Path, *, release: str = "ID=debian\nVERSION_CODENAME=bookworm\n", **files: str
) -> tuple[Path, Path]:
    """An /etc/apt and an os-release; `list` is sources.list, other names go to sources.list.d."""
    apt = folder / "apt"
    (apt / "sources.list.d").mkdir(parents=True)
    for name, text in files.items():
        place = apt / "sources.list" if name == "list" else apt / "sources.list.d" / name.replace("_", ".")
        place.write_text(text)
    (folder / "os-release").write_text(release)
    return apt, folder / "os-release"


def test_stanzas_are_read_with_their_key(tmp_path):
    apt, _ = machine(tmp_path, debian_sources=DEB822)
    assert sources(apt)[0] == Source(
        ("http://mirror.example/debian",),
        ("bookworm", "bookworm-updates"),
        ("main", "contrib"),
        (("Signed-By", "/usr/share/keyrings/debian-archive-keyring.gpg"),),
    )


def test_a_key_inside_of_a_stanza_is_copied_whole(tmp_path):
    apt, _ = machine(tmp_path, debian_sources=INLINE)
    text = sources(apt)[0].text("forky")
    assert "Suites: forky\n" in text
    assert "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBGA\n -----END PGP PUBLIC KEY BLOCK-----\n" in text


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("deb http://m.example/debian bookworm main", ()),
        (
            "deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian bookworm main contrib # why",
            (("Signed-By", "/k.gpg"),),
        ),
        ("  deb\t[ trusted=yes ]  http://m.example/debian\tbookworm  main", (("Trusted", "yes"),)),
    ],
)
def test_lines_are_read_with_their_options(tmp_path, line, options):
    apt, _ = machine(
        tmp_path, list=f"# deb http://no.example/debian bookworm main\n{line}\ndeb-src http://s.example x main\n"
    )
    (source,) = sources(apt)
    assert source.uris == ("http://m.example/debian",)
    assert source.suites == ("bookworm",)
    assert "main" in source.components
    assert "#" not in source.components
    assert source.options == options


def test_disabled_stanzas_and_files_with_other_names_are_not_read(tmp_path):
    apt, _ = machine(tmp_path, a_sources="Enabled: no\n" + INLINE, b_save=INLINE)
    assert sources(apt) == []


def test_the_archive_is_the_one_that_serves_the_systems_own_suite(tmp_path):
    extra = "Types: deb\nURIs: https://node.example/x\nSuites: nodistro\nComponents: main\n"
    apt, release = machine(tmp_path, a_sources=extra, debian_sources=DEB822)
    distribution, suite, source = archive(apt, release)
    assert (distribution, suite) == ("debian", "bookworm")
    assert source.uris == ("http://mirror.example/debian",)


def test_a_source_that_names_an_alias_of_the_suite_is_taken(tmp_path):
    apt, release = machine(tmp_path, list="deb http://m.example/debian stable main\n")
    assert archive(apt, release)[2].suites == ("stable",)


def test_another_distribution_is_named_with_its_own_suite(tmp_path):
    apt, release = machine(
        tmp_path,
        release='ID=ubuntu\nVERSION_CODENAME="noble"\n',
        list="deb http://u.example/ubuntu noble main universe\n",
    )
    assert archive(apt, release)[:2] == ("ubuntu", "noble")


def test_a_machine_without_apt_is_unavailable_by_its_nature(tmp_path):
    with pytest.raises(Unavailable, match="apt sources") as error:
        archive(tmp_path / "none", tmp_path / "none")
    assert error.value.excusable


def test_sources_without_the_systems_suite_say_so(tmp_path):
    apt, release = machine(tmp_path, list="deb http://m.example/x other main\n")
    with pytest.raises(Unavailable, match="no apt source serves the main component of bookworm"):
        archive(apt, release)
