"""Nothing is sent to a host or an address that the operator did not allow, however it is written."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from worker.connect import Watch, _is_public, check_url, open_session, same_origin, transport_error, watched
from worker.errors import BlockedAddressError, LeaseLostError, VendorReplyError, VendorUnavailableError
from worker.settings import CrayonSettings


def source_of(base, **more):
    return CrayonSettings(vendor="crayon", base_url=base, client_id="i", client_secret="s", username="u", password="p", **more)


@contextmanager
def serving(tls=None):
    """Serve on 127.0.0.1 and give (url, the paths asked for)."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked.append((self.path, self.headers))
            if self.path == "/slow":
                time.sleep(3)
            moved = self.path == "/moved"
            self.send_response(302 if moved else 200)
            self.send_header("Location", "/")
            self.send_header("Set-Cookie", "a=b")
            self.send_header("Content-Length", "2")
            with suppress(ConnectionError):  # whoever asks for /slow has gone
                self.end_headers()
                self.wfile.write(b"ok")

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # a client that does not trust us hangs up
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


# --- names -----------------------------------------------------------------------------------------------------------

HOSTS = ("files.example.com", "*.cdn.example", "10.1.2.3", "[2001:db8::1]", "Größe.example")


@pytest.mark.parametrize(
    "url",
    [
        "https://api.crayon.com/x",
        "https://API.Crayon.COM.:8443/x",
        "https://files.example.com/a?b=c",
        "https://a.cdn.example/",
        "https://A.B.CDN.example./",
        "https://10.1.2.3/",
        "https://[2001:DB8:0::1]:99/",
        "https://größe.example/",
        "https://xn--gre-6ka8i.example/",
        "https://api.crayon.com/with space/ünd mehr?q=@:/\\",
    ],
)
def test_hosts_that_are_named_are_allowed(url):
    check_url(url, source_of("https://api.crayon.com", download_hosts=HOSTS))


@pytest.mark.parametrize(
    "url",
    [
        "https://crayon.com/",
        "https://evil.example/",
        "https://api.crayon.com.evil.example/",
        "https://evilapi.crayon.com/",
        "https://cdn.example/",
        "https://evilcdn.example/",
        "https://.cdn.example/",
        "https://10.1.2.4/",
        "http://api.crayon.com/",
        "ftp://api.crayon.com/",
        "file:///etc/passwd",
        "//api.crayon.com/",
        "/relative",
        "",
        "https://",
        "https://user@api.crayon.com/",
        "https://user:pass@api.crayon.com/",
        "https://evil.example\\@api.crayon.com/",
        "https://api.crayon.com\\.evil.example/",
        "https://api.crayon.com\n.evil.example/",
        "https://api.crayon.com/\r\nX: y",
        "https://[::1/",
        "https://api.crayon.com:port/",
        "https://api.crayon.com%2eevil.example/",
        pytest.param("https://a" + "\u0315\u0300" * 500_000 + "/", id="a host of a million accents"),
        pytest.param("https://api.crayon.com/" + "x" * 16_384, id="longer than any URL"),
    ],
)
@pytest.mark.timeout(20)
def test_everything_else_is_refused(url):
    with pytest.raises(BlockedAddressError):
        check_url(url, source_of("https://api.crayon.com", download_hosts=HOSTS))


def test_a_base_url_of_plain_http_may_lead_to_either_but_https_never_back():
    source = source_of("http://api.crayon.com")
    check_url("http://api.crayon.com/", source)
    check_url("https://api.crayon.com/", source, came_from="http://api.crayon.com/")
    with pytest.raises(BlockedAddressError):
        check_url("http://api.crayon.com/", source, came_from="https://api.crayon.com/")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://a.example/x", "https://A.example.:443/y?z", True),
        ("http://a.example", "http://a.example:80/", True),
        ("http://a.example", "https://a.example", False),
        ("https://a.example", "https://a.example:444", False),
        ("https://a.example", "https://b.example", False),
        ("http://[::1]:80", "http://[0:0::1]", True),
    ],
)
def test_an_origin_is_scheme_host_and_port(one, other, same):
    assert same_origin(one, other) is same


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2a00:1450:4001::1", True),
        ("64:ff9b::808:808", True),
        ("2002:808:808::1", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("100.127.255.254", False),
        ("192.0.0.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("0.0.0.0", False),
        ("0.1.2.3", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("2001:db8::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("::127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::808:808", False),
        ("2002:7f00:1::", False),
        ("2002:a9fe:a9fe::1", False),
        ("2001:0:808:808::1", False),
    ],
)
def test_only_addresses_of_the_open_internet_are_public(address, public):
    assert _is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::ffff:127.0.0.1]", "[::1]", "0.0.0.0"]
)
def test_the_connection_refuses_a_private_address_however_it_is_written(host):
    with serving() as (url, asked):
        with pytest.raises(BlockedAddressError):
            open_session(source_of(url)).get(url.replace("127.0.0.1", host))
        assert not asked


def test_a_private_address_is_used_where_that_is_allowed():
    with serving() as (url, _):
        session = open_session(source_of(url, allow_private_hosts=True))
        assert session.get(url).text == "ok"
        assert session.get(url.replace("127.0.0.1", "localhost")).text == "ok"


def test_the_name_is_resolved_once(monkeypatch):
    """The one patch here, of the name server: a second look-up could give another address than the one that was checked."""
    asked = []

    def getaddrinfo(host, port, *args, **options):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    with serving() as (url, _):
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        named = url.replace("127.0.0.1", "vendor.example")
        assert open_session(source_of(named, allow_private_hosts=True)).get(named).text == "ok"
        with pytest.raises(BlockedAddressError):
            open_session(source_of(named)).get(named)
    assert asked == ["vendor.example"] * 2


# --- the session -----------------------------------------------------------------------------------------------------


def test_redirects_are_not_followed_and_cookies_not_kept():
    with serving() as (url, asked):
        session = open_session(source_of(url, allow_private_hosts=True))
        assert session.get(url + "/moved").status_code == 302
        session.get(url)
        assert [path for path, _ in asked] == ["/moved", "/"]
        assert all("Cookie" not in headers for _, headers in asked)


def test_the_environment_changes_nothing(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving() as (url, _):
        assert open_session(source_of(url, allow_private_hosts=True)).get(url).text == "ok"


def test_a_proxy_is_used_and_may_be_private():
    with serving() as (url, asked):
        session = open_session(source_of("http://api.crayon.com", proxy=url))
        assert session.get("http://api.crayon.com/x").text == "ok"
        assert [path for path, _ in asked] == ["http://api.crayon.com/x"]


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "2130706433", "0x7f.1", "[::1]", "localhost", "a.localhost"])
def test_no_proxy_is_asked_for_a_private_address(host):
    with serving() as (url, asked):
        with pytest.raises(BlockedAddressError):
            open_session(source_of("http://api.crayon.com", proxy=url)).get(f"http://{host}/")
        assert not asked


def certificate(folder, name):
    """Write a self-signed certificate for the host `name`; give the paths of it and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "cert.pem", folder / "key.pem"


def test_tls_is_verified_against_the_host_name_not_the_address(tmp_path):
    cert, key = certificate(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    names = []
    context.sni_callback = lambda _sock, name, _context: names.append(name)
    with serving(context) as (url, _):
        secure = url.replace("http://127.0.0.1", "https://localhost")
        trusting = open_session(source_of(secure, allow_private_hosts=True, ca_bundle=cert))
        assert trusting.get(secure).text == "ok"
        for session, other in (
            (trusting, secure.replace("localhost", "127.0.0.1")),
            (open_session(source_of(secure, allow_private_hosts=True)), secure),
        ):
            with pytest.raises(requests.exceptions.SSLError) as error:
                session.get(other)
            assert isinstance(transport_error(error.value), VendorUnavailableError)
    assert names == ["localhost", None, "localhost"]


# --- faults ----------------------------------------------------------------------------------------------------------


def fault(url, **more):
    session = open_session(
        source_of("http://vendor.example", allow_private_hosts=True, connect_timeout="500ms", read_timeout="500ms")
    )
    with pytest.raises(requests.RequestException) as error:
        session.get(url, **more)
    return transport_error(error.value)


def test_faults_become_ours_without_the_url():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        timed_out = fault(f"http://127.0.0.1:{port}/secret")
        no_tls = fault(f"https://127.0.0.1:{port}/secret")
    refused = fault(f"http://127.0.0.1:{port}/secret")
    unresolved = fault("http://no-such-host.invalid/secret")
    assert {type(error) for error in (timed_out, no_tls, refused, unresolved)} == {VendorUnavailableError}
    assert "in time" in str(timed_out)
    assert "no connection" in str(refused)
    assert "resolved" in str(unresolved)
    assert not any("secret" in str(error) or str(port) in str(error) for error in (timed_out, no_tls, refused, unresolved))


def test_a_url_that_is_none_is_the_vendors_fault():
    assert isinstance(fault("http://[::1"), VendorReplyError)


def test_a_watched_exchange_ends_in_time():
    with serving() as (url, _):
        session = open_session(source_of(url, allow_private_hosts=True))
        began = time.monotonic()
        with pytest.raises(VendorUnavailableError), watched(0.3):
            session.get(url + "/slow")
        assert time.monotonic() - began < 2


def test_a_watch_raises_what_its_check_raised_on_a_kept_connection_as_well():
    with serving() as (url, _):
        session = open_session(source_of(url, allow_private_hosts=True))
        session.get(url)
        error = LeaseLostError("lost")

        def check():
            raise error

        with Watch(check) as watch, watch.sending():
            with pytest.raises(requests.RequestException):
                session.get(url + "/slow")
            with pytest.raises(LeaseLostError):
                watch.raise_if_over()
        assert session.get(url).text == "ok"
