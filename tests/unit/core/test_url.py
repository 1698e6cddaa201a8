"""URLs are parsed, typed and checked, and show no secret."""

import pytest

import brokerkit
from brokerkit.url import authority, parse, with_hosts


def test_hosts_credentials_and_options_are_taken_apart():
    text = "memory://user:p%40ss@[::1]:5,other:7/path%20x?client.acks=1"
    plugin, url, settings = parse(text, {"client": {"b": True}})
    assert plugin.name == "memory"
    assert (url.username, url.password, url.path) == ("user", "p@ss", "/path x")
    assert url.hosts == (("::1", 5), ("other", 7))
    assert settings.client == {"acks": "1", "b": "true"}


def test_no_secret_is_shown():
    _, url, _ = parse("memory://user:sesame@host:1/v", {})
    assert "sesame" not in repr(url)
    assert repr(url) == "Url(memory://user:***@host:1/v)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("memory:/x", "looks like"),
        ("memory://x#y", "%23"),
        ("memory://[::1", "malformed"),
        ("memory://x:sesame@h:0", "65535"),
        ("memory://x:sesame@h:80a", "not a number"),
        ("memory://x:sesame@h/?nope=1", "known"),
    ],
)
def test_a_bad_url_is_explained_without_its_secret(text, said):
    with pytest.raises(brokerkit.ConfigurationError, match=said) as error:
        brokerkit.connect(text)
    assert "sesame" not in str(error.value)


def test_an_unknown_scheme_lists_what_is_installed():
    with pytest.raises(brokerkit.ConfigurationError, match=r"installed: .*memory"):
        brokerkit.connect("carrier-pigeon://x")


@pytest.mark.parametrize(
    ("url", "moved"),
    [
        ("x://h:1", "x://127.0.0.1:7"),
        ("x://me:h%3A1@h:1/v?a=h:1", "x://me:h%3A1@127.0.0.1:7/v?a=h:1"),
        ("x://h:1@h:1/h:1", "x://h:1@127.0.0.1:7/h:1"),
        ("x://[::1]:5672?a=/b@c", "x://127.0.0.1:7?a=/b@c"),
        ("x://a,b:2/", "x://127.0.0.1:7/"),
        ("x:///file", "x://127.0.0.1:7/file"),
    ],
)
def test_hosts_are_exchanged_and_nothing_else(url, moved):
    assert with_hosts(url, "127.0.0.1:7") == moved


def test_user_and_hosts_are_told_apart_without_a_check():
    assert authority("x://me:a@b:99999,[::1/v") == ("me:a", "b:99999,[::1")
    assert authority("x://h?user=a@b") == ("", "h")
